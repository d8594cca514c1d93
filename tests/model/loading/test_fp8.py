"""Hugging Face folders with FP8 weights: the same model as a dense folder with the same weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels.backend import Fp8Weight
from kernels.load import load_backend
from model.checkpoint.errors import CheckpointError
from model.checkpoint.source import open_checkpoint
from tests.tiny import CPU, TINY_MODELS, QuantizedBackend, logits_of, save, weights_of
from tests.tiny_fp8 import E4M3, FP8_PACKINGS, fp8, rounded, save_fp8, spread

Q = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize("packing", FP8_PACKINGS)
def test_numbers(packing: str, tmp_path: Path) -> None:
    """To the last bit, where blocks are cut off at both edges too."""
    model = TINY_MODELS["llama"].build()
    save_fp8(model, FP8_PACKINGS[packing], tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    for name, weight in model.named_parameters():
        assert checkpoint.shape(name) == weight.shape
        assert torch.equal(torch.from_numpy(checkpoint.read(name).float32()), weight.detach()), name


@pytest.mark.parametrize("packing", FP8_PACKINGS)
@pytest.mark.parametrize("backend", [None, "cpu", "quantized"])
def test_logits(packing: str, backend: str | None, tmp_path: Path) -> None:
    model = TINY_MODELS["llama"].build()
    save_fp8(model, FP8_PACKINGS[packing], tmp_path / "fp8")
    save(model, tmp_path / "dense")
    computing = {None: None, "cpu": load_backend(CPU, "cpu"), "quantized": QuantizedBackend()}[backend]
    torch.testing.assert_close(logits_of(tmp_path / "fp8", computing), logits_of(tmp_path / "dense"), atol=1e-4, rtol=0)


@pytest.mark.parametrize("packing", ["compressed-channel", "small-block", "tensor"])
@pytest.mark.parametrize("case", ["qwen3", "llama-biased", "phi3", "bloom"])
def test_logits_of_families(case: str, packing: str, tmp_path: Path) -> None:
    """With biases, one stacked tensor, and rows in the order of heads; dense and kept."""
    model = TINY_MODELS[case].build()
    save_fp8(model, FP8_PACKINGS[packing], tmp_path / "fp8")
    save(model, tmp_path / "dense")
    expected = logits_of(tmp_path / "dense")
    torch.testing.assert_close(logits_of(tmp_path / "fp8"), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits_of(tmp_path / "fp8", QuantizedBackend()), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("packing", "heights", "width"),
    [
        ("compressed-channel", (1, 1), 64),
        # Keys and values have 32 rows each: they begin where a block of 64 rows would not, and tensors where one of 32.
        ("tensor", (32, 96), 64),
        ("compressed-block", (32, 32), 64),
        ("small-block", (8, 8), 32),
    ],
)
def test_what_is_kept(packing: str, heights: tuple[int, int], width: int, tmp_path: Path) -> None:
    """Projections where the backend asks for it, in blocks as high as fit; a stack with a dense part is dense."""
    dense = frozenset({"lm_head", f"{Q}", "model.layers.2.mlp.down_proj"})
    save_fp8(TINY_MODELS["llama"].build(), FP8_PACKINGS[packing], tmp_path, dense)
    kept = weights_of(tmp_path, QuantizedBackend())
    first, second, third = kept.layers
    for projection, height in ((first.qkv, heights[0]), (first.up, heights[1])):
        assert isinstance(projection.weight, Fp8Weight)
        assert (projection.weight.height, projection.weight.width) == (height, width)
        assert projection.weight.numbers.dtype == E4M3
    for projection in (second.qkv, third.down, kept.output):
        assert isinstance(projection.weight, Tensor)
    assert isinstance(weights_of(tmp_path, load_backend(CPU, "reference")).layers[0].qkv.weight, Tensor)


def test_blocks_too_narrow_for_kernels_are_dequantised(tmp_path: Path) -> None:
    packing = replace(FP8_PACKINGS["small-block"], config=fp8(weight_block_size=[16, 16]), block=(16, 16))
    save_fp8(TINY_MODELS["llama"].build(), packing, tmp_path)
    assert isinstance(weights_of(tmp_path, QuantizedBackend()).layers[0].qkv.weight, Tensor)


def test_transformers_reads_the_same_numbers(tmp_path: Path) -> None:
    """Its own dequantisation of blocks, which needs whole ones, from our test's folder."""
    save_fp8(TINY_MODELS["llama"].build(), FP8_PACKINGS["compressed-block"], tmp_path / "theirs")
    packing = FP8_PACKINGS["compressed-block"]
    dequantize = transformers.integrations.finegrained_fp8.Fp8Dequantize(None)
    weight = TINY_MODELS["llama"].build().model.layers[1].self_attn.q_proj.weight.detach()
    codes, scales = rounded(weight, packing)
    theirs = dequantize.convert({"weight": codes, "weight_scale_inv": scales})["weight"]
    assert torch.equal(theirs, codes.float() * spread(scales, packing, weight.shape))
    ours = open_checkpoint(tmp_path / "theirs").read(f"{Q}.weight").float32()
    assert torch.equal(torch.from_numpy(ours), theirs)


def test_every_code_has_torchs_number(tmp_path: Path) -> None:
    save_fp8(TINY_MODELS["llama"].build(), FP8_PACKINGS["tensor"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).repeat(16).view(64, 64).view(E4M3)
    tensors |= {f"{Q}.weight": codes, f"{Q}.weight_scale": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "model.safetensors")
    numbers = torch.from_numpy(open_checkpoint(tmp_path).read(f"{Q}.weight").float32())
    torch.testing.assert_close(numbers, codes.float(), equal_nan=True, atol=0, rtol=0)


def test_scales_are_not_tensors_of_their_own(tmp_path: Path) -> None:
    save_fp8(TINY_MODELS["llama"].build(), FP8_PACKINGS["compressed-tensor"], tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensor_names()) == {name for name, _ in TINY_MODELS["llama"].build().named_parameters()}


def no_scales(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{Q}.weight_scale_inv"]


def two_scales(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q}.weight_scale"] = torch.ones(1, 1)


def too_many_scales(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q}.weight_scale_inv"] = torch.ones(2, 1)


def dense_numbers(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"].bfloat16()


def other_numbers(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"].float().to(torch.float8_e5m2)


def no_weight(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{Q}.weight"]


def exponents(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q}.weight_scale_inv"] = torch.ones(1, 1, dtype=torch.uint8)


def static_inputs(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q}.input_scale"] = torch.tensor(0.1)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (no_scales, "q_proj.weight' is of type F8_E4M3, which is not supported"),
        (two_scales, "q_proj.weight' has two tensors of scales"),
        (too_many_scales, "weight_scale_inv' has the shape (2, 1), and"),
        (dense_numbers, "q_proj.weight' is of type BF16, not F8_E4M3"),
        (other_numbers, "q_proj.weight' is of type F8_E5M2, not F8_E4M3"),
        (no_weight, "q_proj.weight_scale_inv' stands beside no matrix"),
        (exponents, "q_proj.weight_scale_inv' is of type U8, which is not supported"),
        (static_inputs, "input_scale' first"),
    ],
)
def test_damaged_layers_end_in_one_line(
    damage: Callable[[dict[str, Tensor]], None], named: str, tmp_path: Path
) -> None:
    save_fp8(TINY_MODELS["llama"].build(), FP8_PACKINGS["block"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        weights_of(tmp_path, load_backend(CPU, "reference"))
    assert named in str(caught.value)
    assert str(caught.value).isprintable()
