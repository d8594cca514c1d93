"""Projections with e4m3 weights against plain torch: every form of scales, over shapes that are no whole tiles."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.backend import Fp8Weight
from kernels.gpu import fp8_matmul, matmul
from kernels.gpu.backend import TritonBackend
from kernels.gpu.fp8 import converts_e4m3
from kernels.gpu.launch import TARGETS, JitLauncher, Target, device_target
from kernels.gpu.matmul import PROJECTING, Projecting
from kernels.reference import dequantize_fp8, quantize_e4m3

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TARGET = device_target(DEVICE)
INTERPRETED = DEVICE.type == "cpu"
CHIPS = list(TARGETS) if INTERPRETED else [""]
"""Interpreted, a kernel can be run as any chip runs it."""
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2}
TENSOR_CORES = 2e-3
"""The same for sums of a tile by tensor cores, which keep 14 bits of e4m3 products (arXiv 2412.19437, 3.3.2)."""

Block = tuple[int | None, int | None]
"""(outputs, inputs) that share a scale; None: all."""
BLOCKS: tuple[Block, ...] = ((128, 128), (None, None), (1, None), (8, 32), (40, 64), (1, 128))


def chip_of(name: str) -> Target:
    return TARGETS[name] if name else TARGET


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def weight_of(block: Block, outputs: int, inputs: int, seed: int = 0) -> Fp8Weight:
    height, width = block[0] or outputs, block[1] or inputs
    scales = random(-(-outputs // height), -(-inputs // width), seed=seed + 1).abs() + 0.5
    return Fp8Weight(random(outputs, inputs, seed=seed).to(torch.float8_e4m3fn), scales / inputs**0.5, height, width)


def project(
    x: Tensor,
    weight: Fp8Weight,
    bias: Tensor | None = None,
    *,
    batch_invariant: bool = False,
    target: Target = TARGET,
    projecting: Projecting = PROJECTING,
) -> Tensor:
    backend = TritonBackend(JitLauncher(target), batch_invariant=batch_invariant, projecting=projecting)
    return backend.linear(x, backend.pack(weight, bias))


def assert_projected(got: Tensor, x: Tensor, weight: Fp8Weight, bias: Tensor | None, target: Target = TARGET) -> None:
    """`got` is the product of the rounded activations, where the chip rounds them, relative to its usual size."""
    seen = quantize_e4m3(x, weight.width) if converts_e4m3(target) else x
    expected = seen.double() @ dequantize_fp8(weight).double().T
    if bias is not None:
        expected += bias.double()
    bound = TOLERANCE[x.dtype]
    if converts_e4m3(target) and not INTERPRETED:
        bound = max(bound, TENSOR_CORES)
    assert got.dtype == x.dtype
    torch.testing.assert_close(got.double(), expected, rtol=bound, atol=bound * float(expected.abs().mean()))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    block=st.sampled_from(BLOCKS),
    tokens=st.integers(1, 140),
    outputs=st.integers(1, 140),
    inputs=st.integers(1, 300),
    dtype=st.sampled_from(list(TOLERANCE)),
    biased=st.booleans(),
    batch_invariant=st.booleans(),
    chip=st.sampled_from(CHIPS),
    tiles_per_split=st.sampled_from([1, matmul.TILES_PER_SPLIT]),
)
def test_products(
    block: Block,
    tokens: int,
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    biased: bool,
    batch_invariant: bool,
    chip: str,
    tiles_per_split: int,
) -> None:
    weight, target = weight_of(block, outputs, inputs), chip_of(chip)
    x = random(tokens, inputs, dtype=dtype, seed=2)
    bias = random(outputs, dtype=dtype, seed=3) if biased else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "TILES_PER_SPLIT", tiles_per_split)
        got = project(x, weight, bias, batch_invariant=batch_invariant, target=target)
    assert_projected(got, x, weight, bias, target)


@pytest.mark.parametrize("width", [32, 128, 300, 5000])
@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.bfloat16], ids=str)
def test_activations_are_rounded_as_in_torch(width: int, dtype: torch.dtype) -> None:
    """To the last bit, from runs of zeros to the largest numbers."""
    x = random(4, max(width, 300), dtype=dtype)
    x *= torch.tensor([0, 1e-4, 1, 1e4], device=DEVICE, dtype=dtype)[:, None]
    numbers, scales = fp8_matmul.quantize(JitLauncher(TARGET), x, width)
    got = numbers.float() * scales.T.repeat_interleave(width, 1)[:, : x.shape[1]]
    assert torch.equal(got, quantize_e4m3(x, width))


def test_rounding_is_by_half_a_step_at_most() -> None:
    """The oracle itself: e4m3 has four significant bits, and a run's largest magnitude is met."""
    x = random(50, 256)
    rounded = quantize_e4m3(x, 128)
    largest = x.view(50, 2, 128).abs().amax(2, keepdim=True)
    step = torch.maximum(x.abs().view(50, 2, 128) * 2.0**-4, largest / 448 * 2.0**-10)
    assert ((rounded - x).abs().view(50, 2, 128) <= step * 1.0001).all()


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_batch_invariant_rows_depend_on_nothing_else(block: Block, chip: str) -> None:
    weight, bias, x = weight_of(block, 50, 300), random(50, seed=2), random(70, 300, seed=1)
    target = chip_of(chip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "TILES_PER_SPLIT", 1)
        alone = [project(x[[row]], weight, bias, batch_invariant=True, target=target)[0] for row in (0, 47, 69)]
        together = project(x, weight, bias, batch_invariant=True, target=target)
    assert torch.equal(together[[0, 47, 69]], torch.stack(alone))


def test_splits_are_added_within_a_program_or_apart_or_by_the_last_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit the same, on chips on which as many splits are made, but that one leaves idle and the other not."""
    added: list[str] = []
    add = fp8_matmul.add_splits
    monkeypatch.setattr(matmul, "TILES_PER_SPLIT", 1)
    monkeypatch.setattr(matmul, "PROGRAMS_PER_MULTIPROCESSOR", 6)
    weight, bias, x = weight_of((1, 128), 64, 640), random(64, seed=2), random(3, 640, seed=1)

    def noted(*arguments: Any) -> None:
        added.append("apart")
        add(*arguments)

    monkeypatch.setattr(fp8_matmul, "add_splits", noted)
    apart = project(x, weight, bias, batch_invariant=True)
    assert added == ["apart"]
    for _ in range(2):  # Counters are as they were, afterwards.
        assert torch.equal(project(x, weight, bias, batch_invariant=True, projecting=Projecting(folded=True)), apart)
    assert added == ["apart"]
    monkeypatch.setattr(matmul, "PROGRAMS_PER_MULTIPROCESSOR", 6 * TARGET.multiprocessors)
    within = project(x, weight, bias, batch_invariant=True, target=replace(TARGET, multiprocessors=1))
    assert added == ["apart"]
    assert torch.equal(apart, within)


def test_tokens_that_are_not_contiguous_and_none_at_all() -> None:
    weight = weight_of((128, 128), 20, 256)
    x = random(256, 5, seed=1).T
    assert_projected(project(x, weight), x, weight, None)
    assert project(x[:0], weight).shape == (0, 20)


def test_the_weight_keeps_its_memory() -> None:
    weight = weight_of((128, 128), 20, 256)
    packed = TritonBackend(JitLauncher(TARGET)).pack(weight, None).weight
    assert packed is weight
