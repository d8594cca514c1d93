"""Projections compiled for the GPU, in its dtypes and at the sizes of models, against float64, and to the bit."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from kernels.aot.cases import FORMS
from kernels.backend import Linear, QuantizedWeight
from kernels.gpu.launch import JitLauncher, device_target
from kernels.gpu.matmul import FUSED_TOKENS, Projecting, Tiling, linear, pack
from kernels.gpu.matvec import RowTiling
from kernels.gpu.packed import dequantize, rearrange
from kernels.reference import dequantize as reference_dequantize

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAUNCH = JitLauncher(device_target(DEVICE))
HALF_STEP = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""How far rounding takes a number from itself, relative to it."""
SUMS = 5e-4
"""How far adding up in float32 may take a sum from itself, relative to the sums' usual size. One input of 14336 that is
left out, or taken twice, usually takes it sixteen times as far."""
SHAPES = ((6144, 4096), (4096, 14_336), (960, 576), (896, 4864))
"""(out, in): Llama 8B's first and last projection of a layer; SmolLM2's and Qwen 2.5's, which are no whole tiles."""

Form = tuple[Literal[4, 8], int, bool]
"""Bits, group size, whether there are offsets."""

forms = pytest.mark.parametrize("form", FORMS, ids=str)
dtypes = pytest.mark.parametrize("dtype", HALF_STEP, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE).to(dtype)


def quantized(form: Form, outputs: int, inputs: int) -> QuantizedWeight:
    """Of random codes, so scaled that a row's products with numbers of size 1 add up to about 1."""
    bits, group_size, offsets = form
    inputs = -(-inputs // group_size) * group_size
    generator = torch.Generator(DEVICE).manual_seed(bits)
    codes = torch.randint(0, 256, (outputs, inputs * bits // 8), generator=generator, device=DEVICE, dtype=torch.uint8)
    scales = (torch.rand(outputs, inputs // group_size, generator=generator, device=DEVICE) + 0.5) / 2 ** (bits - 1)
    scales = scales / inputs**0.5
    lowest = -scales * 2 ** (bits - 1) * torch.rand(scales.shape, generator=generator, device=DEVICE)
    zero = 0 if offsets else 1 << (bits - 1)
    return QuantizedWeight(codes, scales.half(), lowest if offsets else None, zero, bits, group_size)


def assert_projected(got: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, dtype_roundings: float = 0.0) -> None:
    """`got` is x W^T + bias, but for one rounding to its dtype and for float32 sums.

    `dtype_roundings` is how far a sum is off, in half steps of its usual size, where numbers are rounded before.
    """
    exact = x.double() @ weight.double().T
    usual = float(exact.square().mean().sqrt())
    if bias is not None:
        exact += bias.double()
    step = HALF_STEP[got.dtype]
    torch.testing.assert_close(
        got.double(), exact, rtol=1.01 * step, atol=(SUMS + dtype_roundings * step) * usual + 1e-6
    )


def project(x: Tensor, weight: Linear, *, batch_invariant: bool = False) -> Tensor:
    return linear(LAUNCH, x, weight, batch_invariant=batch_invariant)


@forms
@dtypes
@shapes
def test_quantised(form: Form, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight = quantized(form, *shape)
    numbers = reference_dequantize(weight)
    for tokens in (1, 8, 17, 32, 64, FUSED_TOKENS):
        x = random(tokens, weight.shape[1], dtype=dtype, seed=tokens)
        for bias in (None, random(shape[0], dtype=dtype, seed=2)):
            packed = pack(weight, bias)
            assert_projected(project(x, packed), x, numbers, bias)
            assert_projected(project(x, packed, batch_invariant=True), x, numbers, bias)


@forms
@dtypes
def test_more_tokens_than_are_fused(form: Form, dtype: torch.dtype) -> None:
    """There the weight's numbers are rounded, each by half a step at most: their products' sum by six deviations."""
    weight = quantized(form, 6144, 4096)
    x, bias = random(FUSED_TOKENS + 1, 4096, dtype=dtype), random(6144, dtype=dtype, seed=2)
    assert_projected(project(x, pack(weight, bias)), x, reference_dequantize(weight), bias, dtype_roundings=6)


@forms
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_STEP], ids=str)
def test_packing_loses_nothing(form: Form, dtype: torch.dtype) -> None:
    """Where a multiplication and an addition are one instruction, the product is not rounded: so nearly nothing."""
    weight = quantized(form, 1000, 4864)
    got, exact = dequantize(LAUNCH, rearrange(weight), dtype), reference_dequantize(weight)
    if weight.offsets is None:
        assert torch.equal(got, exact.to(dtype))
    else:
        step = HALF_STEP.get(dtype, 2**-24)
        torch.testing.assert_close(got.float(), exact, rtol=2.1 * step, atol=2**-23 * float(exact.abs().max()))


@dtypes
@shapes
def test_dense_and_batch_invariant(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    outputs, inputs = shape
    weight = random(outputs, inputs, dtype=dtype) / inputs**0.5
    for tokens in (1, 8, 32, 64, 300):
        x = random(tokens, inputs, dtype=dtype, seed=tokens)
        for bias in (None, random(outputs, dtype=dtype, seed=2)):
            assert_projected(project(x, pack(weight, bias), batch_invariant=True), x, weight, bias)


@pytest.mark.parametrize("form", [*FORMS, None], ids=str)
@dtypes
@shapes
def test_batch_invariant_rows_depend_on_nothing_else(
    form: Form | None, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    weight = quantized(form, *shape) if form else random(*shape, dtype=dtype) / shape[1] ** 0.5
    packed = pack(weight, random(shape[0], dtype=dtype, seed=2))
    x = random(700, weight.shape[1], dtype=dtype, seed=1)
    rows = (0, 63, 64, 500, 699)
    alone = [project(x[row : row + 1], packed, batch_invariant=True)[0] for row in rows]
    x[[row for row in range(1, 700, 7) if row not in rows]] = float("nan")
    for batch in (range(700), range(490, 510), range(60, 70)):
        together = project(x[batch.start : batch.stop], packed, batch_invariant=True)
        for row, expected in zip(rows, alone, strict=True):
            if row in batch:
                assert torch.equal(together[row - batch.start], expected), (batch, row)


@dtypes
@shapes
@pytest.mark.parametrize("tiling", [RowTiling(), RowTiling(1, 1024, 4), RowTiling(4, 2048, 8)], ids=str)
def test_one_token_by_rows(tiling: RowTiling, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight = random(*shape, dtype=dtype) / shape[1] ** 0.5
    x = random(1, shape[1], dtype=dtype, seed=1)
    for bias in (None, random(shape[0], dtype=dtype, seed=2)):
        packed = pack(weight, bias)
        got = linear(LAUNCH, x, packed, batch_invariant=False, projecting=Projecting(rows=tiling))
        assert_projected(got, x, weight, bias)


@dtypes
@shapes
@pytest.mark.parametrize("sizes", [(64, 128, 4, 4), (64, 256, 8, 3), (128, 64, 4, 4), (128, 128, 8, 3)], ids=str)
def test_wide_tiles_change_no_bit(sizes: tuple[int, int, int, int], dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """The tensor cores add up in the same order whatever the tile: if not, batch invariance cannot have wide tiles."""
    weight = pack(random(*shape, dtype=dtype) / shape[1] ** 0.5, random(shape[0], dtype=dtype, seed=2))
    x = random(700, shape[1], dtype=dtype, seed=1)
    got = linear(LAUNCH, x, weight, batch_invariant=True, projecting=Projecting(wide=Tiling(*sizes)))
    assert torch.equal(got, project(x, weight, batch_invariant=True))
    assert torch.equal(got[-3:], project(x[-3:], weight, batch_invariant=True))


@pytest.mark.parametrize(
    ("form", "batch_invariant"), [*((form, False) for form in FORMS), *((form, True) for form in FORMS), (None, True)]
)
@pytest.mark.parametrize("tokens", [1, 8, 64, FUSED_TOKENS])
def test_a_graph_changes_no_bit(form: Form | None, batch_invariant: bool, tokens: int) -> None:
    weight = quantized(form, 6144, 4096) if form else random(6144, 4096, dtype=torch.bfloat16) / 64
    packed = pack(weight, None)
    static = random(tokens, 4096, dtype=torch.bfloat16)
    project(static, packed, batch_invariant=batch_invariant)  # Compiled.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = project(static, packed, batch_invariant=batch_invariant)
    for seed in range(1, 4):
        x = random(tokens, 4096, dtype=torch.bfloat16, seed=seed)
        static.copy_(x)
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, project(x, packed, batch_invariant=batch_invariant))


def test_a_graph_takes_more_tokens_than_are_fused() -> None:
    """The product is torch's, and its bits are not ours to promise."""
    weight = quantized(FORMS[0], 6144, 4096)
    packed = pack(weight, None)
    static = random(FUSED_TOKENS + 1, 4096, dtype=torch.bfloat16)
    project(static, packed)  # Compiled.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = project(static, packed)
    static.copy_(random(FUSED_TOKENS + 1, 4096, dtype=torch.bfloat16, seed=1))
    graph.replay()
    assert_projected(out, static, reference_dequantize(weight), None, dtype_roundings=6)


@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs"), [((1 << 19) + 64, 64, 4096), ((1 << 17) + 64, 16_448, 64)], ids=["x", "y"]
)
def test_more_elements_than_32_bits_count(tokens: int, outputs: int, inputs: int) -> None:
    weight = quantized((8, 32, False), outputs, inputs)
    x = torch.zeros(tokens, inputs, dtype=torch.bfloat16, device=DEVICE)
    x[-64:] = random(64, inputs, dtype=torch.bfloat16)
    got = project(x, pack(weight, None), batch_invariant=True)
    assert_projected(got[-64:], x[-64:], reference_dequantize(weight), None)
    assert not got[:64].any()
