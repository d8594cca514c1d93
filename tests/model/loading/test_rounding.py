"""Dense weights rounded to 8 bits at load: near, and computed with as if they had been stored so."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.backend import Fp8Weight
from kernels.cpu.backend import CpuBackend
from kernels.reference import dequantize, dequantize_fp8
from model.batch import batch_layout
from model.checkpoint.source import open_checkpoint
from model.contract import Chunk
from model.decoder import Decoder
from model.families.reader import read_spec
from model.loading.cache import make_cache
from model.loading.dummy import dummy_weights
from model.loading.load import load_runner
from model.loading.rounding import to_8_bits, to_fp8
from model.runner_config import Rounding, RunnerConfig
from tests.model.loading.test_load import CONFIG
from tests.tiny import QuantizedBackend

CPU = torch.device("cpu")


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 5),
    size=st.floats(1e-4, 1e4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_each_weight_is_within_half_a_step(rows: int, groups: int, size: float, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    weight = (torch.randn(rows, 32 * groups).clamp(-4, 4) * size).to(dtype)
    weight[0, :32] = 0
    got = dequantize(to_8_bits(weight))
    steps = weight.float().view(rows, groups, 32).abs().amax(-1, keepdim=True) / 127
    # The scale itself is rounded to float16, by 2^-11 of up to 127 steps, or by 2^-25 if it is tiny.
    errors = (got - weight.float()).view(rows, groups, 32).abs()
    assert (errors <= steps * (0.5 + 127 * 2.0**-11) + 127 * 2.0**-25).all()
    assert not got[0, :32].any()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of which there is a configuration alone, with projections of whole groups and others."""
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "hidden_size": 64, "intermediate_size": 80}))
    return tmp_path


def test_a_rounded_model_computes_nearly_what_the_dense_one_does(folder: Path) -> None:
    spec = read_spec(open_checkpoint(folder, weights=False), None)
    backend, tokens = CpuBackend(2), torch.arange(1, 10)
    layout = batch_layout([Chunk(tokens.tolist(), 0, (0,))], 16, CPU)
    found = []
    roundings: tuple[Rounding, ...] = ("none", "8bit")
    for rounding in roundings:
        weights = dummy_weights(spec, backend, torch.float32, CPU, rounding=rounding)
        decoder = Decoder(spec, weights, backend)
        cache = make_cache(spec, blocks=1, block_size=16, dtype=torch.bfloat16, device=CPU)
        found.append(decoder.logits(decoder.forward(tokens, layout, cache)))
        bits = [linear.weight.form.bits for linear in (weights.layers[0].qkv, weights.layers[0].down, weights.output)]
        assert bits == ([8, 32, 8] if rounding == "8bit" else [32, 32, 32])
    dense, rounded = found
    assert not torch.equal(rounded, dense)
    assert (rounded - dense).abs().mean() < 0.05 * dense.std()


def test_a_backend_that_computes_with_dense_weights_refuses(folder: Path) -> None:
    config = RunnerConfig(model=str(folder), backend="reference", load_format="dummy", cache_memory=2**24)
    load_runner(config)
    roundings: tuple[Rounding, ...] = ("8bit", "fp8")
    for rounding in roundings:
        with pytest.raises(ValueError, match=f"reference backend does not compute with .* round_weights={rounding}"):
            load_runner(replace(config, round_weights=rounding))
    with pytest.raises(ValueError, match=r"cpu .* backend does not compute with .* round_weights=fp8"):
        load_runner(replace(config, round_weights="fp8", backend="cpu"))


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_an_fp8_weight_is_within_half_a_step(size: float) -> None:
    """E4m3 has four significant bits above its steps of 2^-9, and each row's largest weight becomes 448."""
    weight = torch.randn(9, 70, generator=torch.Generator().manual_seed(0)) * size
    weight[3] = 0
    largest = weight.abs().amax(1, keepdim=True)
    steps = torch.maximum(weight.abs() * 2.0**-4, largest / 448 * 2.0**-10)
    got = to_fp8(weight)
    assert ((dequantize_fp8(got) - weight).abs() <= steps * 1.0001).all()
    assert got.shape == weight.shape


def test_layers_become_fp8_and_tables_do_not(folder: Path) -> None:
    spec = read_spec(open_checkpoint(folder, weights=False), None)
    weights = dummy_weights(spec, QuantizedBackend(), torch.float32, CPU, rounding="fp8")
    for layer in weights.layers:
        for linear in (layer.qkv, layer.attention_output, layer.up, layer.down):
            assert isinstance(linear.weight, Fp8Weight)
    assert isinstance(weights.embedding, Tensor)
    assert isinstance(weights.output.weight, Tensor)
