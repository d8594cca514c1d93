"""Group-quantised Hugging Face folders: the same model as a dense folder with the same weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels.backend import QuantizedWeight
from kernels.load import load_backend
from model.checkpoint.errors import CheckpointError
from model.checkpoint.source import open_checkpoint
from tests.tiny import CPU, TINY_MODELS, QuantizedBackend, logits_of, save, weights_of
from tests.tiny_packed import PACKINGS, save_packed

ATTENTION = "model.layers.1.self_attn"


def packed_folder(folder: Path, packing: str = "gptq-4", case: str = "llama") -> Path:
    save_packed(TINY_MODELS[case].build(), PACKINGS[packing], folder)
    return folder


@pytest.mark.parametrize("packing", PACKINGS)
def test_logits(packing: str, tmp_path: Path) -> None:
    """Dense and kept quantised. In half precision offsets are exact here."""
    model = TINY_MODELS["llama"].build()
    save_packed(model, PACKINGS[packing], tmp_path / "packed")
    save(model, tmp_path / "dense")
    expected = logits_of(tmp_path / "dense")
    torch.testing.assert_close(logits_of(tmp_path / "packed"), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits_of(tmp_path / "packed", QuantizedBackend()), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["llama-tied", "llama-biased", "phi3", "bloom"])
def test_logits_of_families(case: str, tmp_path: Path) -> None:
    """With a tied output, biases, one stacked tensor, and rows in the order of heads."""
    model = TINY_MODELS[case].build()
    save_packed(model, PACKINGS["pack-quantized-4-asymmetric"], tmp_path / "packed")
    save(model, tmp_path / "dense")
    expected = logits_of(tmp_path / "dense")
    torch.testing.assert_close(logits_of(tmp_path / "packed"), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits_of(tmp_path / "packed", QuantizedBackend()), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("packing", ["gptq-8", "pack-quantized-4-asymmetric"])
def test_a_packed_output_projection(packing: str, tmp_path: Path) -> None:
    """Its 97 rows do not fill the last word of zeros."""
    model = TINY_MODELS["llama"].build()
    save_packed(model, PACKINGS[packing], tmp_path / "packed", dense=frozenset())
    save(model, tmp_path / "dense")
    assert isinstance(weights_of(tmp_path / "packed", QuantizedBackend()).output.weight, QuantizedWeight)
    expected = logits_of(tmp_path / "dense")
    torch.testing.assert_close(logits_of(tmp_path / "packed", QuantizedBackend()), expected, atol=1e-4, rtol=0)


def test_what_is_kept(tmp_path: Path) -> None:
    """Projections where the backend asks for it; what was not quantised is dense, and so is a stack with it."""
    model = TINY_MODELS["llama"].build()
    dense = frozenset({"lm_head", f"{ATTENTION}.v_proj", "model.layers.2.mlp.down_proj"})
    save_packed(model, PACKINGS["gptq-4"], tmp_path, dense)
    kept = weights_of(tmp_path, QuantizedBackend())
    first, second, third = kept.layers
    quantized = [first.qkv, first.attention_output, first.up, first.down, second.attention_output, third.qkv, third.up]
    for projection in quantized:
        assert isinstance(projection.weight, QuantizedWeight)
        assert (projection.weight.bits, projection.weight.zero, projection.weight.offsets) == (4, 8, None)
    for projection in (second.qkv, third.down, kept.output):
        assert isinstance(projection.weight, Tensor)
    assert isinstance(weights_of(tmp_path, load_backend(CPU, "reference")).layers[0].qkv.weight, Tensor)


def test_parts_are_not_tensors_of_their_own(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(packed_folder(tmp_path))
    assert set(checkpoint.tensor_names()) == {name for name, _ in TINY_MODELS["llama"].build().named_parameters()}
    assert checkpoint.shape(f"{ATTENTION}.k_proj.weight") == (32, 64)
    for name in (f"{ATTENTION}.k_proj.qweight", f"{ATTENTION}.k_proj.scales"):
        with pytest.raises(CheckpointError, match="has no tensor"):
            checkpoint.read(name)


def out_of_order(tensors: dict[str, Tensor]) -> None:
    tensors[f"{ATTENTION}.q_proj.g_idx"] = tensors[f"{ATTENTION}.q_proj.g_idx"].flip(0)


def no_zeros(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{ATTENTION}.q_proj.qzeros"]


def too_few_scales(tensors: dict[str, Tensor]) -> None:
    tensors[f"{ATTENTION}.q_proj.scales"] = tensors[f"{ATTENTION}.q_proj.scales"][:1].clone()


def twice(tensors: dict[str, Tensor]) -> None:
    tensors[f"{ATTENTION}.q_proj.weight"] = torch.zeros(64, 64)


def no_matrix(tensors: dict[str, Tensor]) -> None:
    tensors[f"{ATTENTION}.q_proj.qweight"] = tensors[f"{ATTENTION}.q_proj.qweight"].flatten()


def long_words(tensors: dict[str, Tensor]) -> None:
    tensors[f"{ATTENTION}.q_proj.qweight"] = tensors[f"{ATTENTION}.q_proj.qweight"].long()


def integer_scales(tensors: dict[str, Tensor]) -> None:
    tensors[f"{ATTENTION}.q_proj.scales"] = tensors[f"{ATTENTION}.q_proj.scales"].int()


def more_bits(tensors: dict[str, Tensor]) -> None:
    """As files are that quantise some layers otherwise: twice as many words for each output."""
    for part in ("qweight", "scales", "g_idx"):
        tensor = tensors[f"{ATTENTION}.q_proj.{part}"]
        tensors[f"{ATTENTION}.q_proj.{part}"] = torch.cat([tensor, tensor])
    tensors[f"{ATTENTION}.q_proj.qzeros"] = tensors[f"{ATTENTION}.q_proj.qzeros"].repeat(2, 1)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (out_of_order, "q_proj.weight' has columns in the order of activations (desc_act), which is not supported"),
        (no_zeros, "q_proj.qzeros' has the shape None"),
        (too_few_scales, "q_proj.scales' has the shape (1, 64)"),
        (twice, "q_proj.qweight' is no matrix, or stands beside"),
        (no_matrix, "q_proj.qweight' is no matrix, or stands beside"),
        (long_words, "q_proj.qweight' is of type I64, not of 32-bit integers"),
        (integer_scales, "q_proj.scales' is of type I32, which is not supported"),
        (more_bits, "q_proj.weight' has the shape (64, 128), and the configuration asks for (64, 64)"),
    ],
)
def test_damaged_layers_end_in_one_line(
    damage: Callable[[dict[str, Tensor]], None], named: str, tmp_path: Path
) -> None:
    packed_folder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        weights_of(tmp_path, load_backend(CPU, "reference"))
    assert named in str(caught.value)
    assert str(caught.value).isprintable()


def test_rows_that_are_not_whole_groups_are_refused(tmp_path: Path) -> None:
    """Rows of 96 with one scale, which groups of 64 would leave a remainder of."""
    model = TINY_MODELS["llama"].build()
    others = frozenset(name for name, _ in model.named_modules() if not name.endswith("down_proj"))
    packing = replace(PACKINGS["gptq-row"], config={**PACKINGS["gptq-row"].config, "group_size": 64})
    save_packed(model, packing, tmp_path, others)
    with pytest.raises(CheckpointError, match=r"down_proj\.qweight' are not whole groups of 64"):
        open_checkpoint(tmp_path)
