"""Projections against the reference backend: every form of weight, over shapes that are no whole tiles."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.aot.cases import FORMS
from kernels.backend import QuantizedWeight
from kernels.gpu import matmul
from kernels.gpu.launch import TARGETS, JitLauncher, Target, device_target
from kernels.gpu.matmul import FUSED_TOKENS, PROJECTING, Projecting, Tiling, linear, pack
from kernels.gpu.matvec import RowTiling
from kernels.gpu.packed import dequantize, rearrange
from kernels.reference import ReferenceBackend
from kernels.reference import dequantize as reference_dequantize

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAUNCH = JitLauncher(device_target(DEVICE))
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2}

Form = tuple[Literal[4, 8], int, bool]
"""Bits, group size, whether there are offsets."""
MORE_FORMS: tuple[Form, ...] = ((4, 16, False), (8, 128, True), (4, 256, True))
"""That no format is published in, and the interface has."""

forms = pytest.mark.parametrize("form", FORMS + MORE_FORMS, ids=str)
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def quantized(form: Form, outputs: int, inputs: int, seed: int = 0) -> QuantizedWeight:
    """Of random codes, with numbers about as large as a model's are beside its activations: their products add to 1."""
    bits, group_size, offsets = form
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (outputs, inputs * bits // 8), generator=generator, dtype=torch.int32).to(torch.uint8)
    scales = (torch.rand(outputs, inputs // group_size, generator=generator) + 0.5) / 2 ** (bits - 1) / inputs**0.5
    lowest = -scales * 2 ** (bits - 1) * torch.rand(scales.shape, generator=generator)
    return QuantizedWeight(
        codes.to(DEVICE),
        scales.half().to(DEVICE),
        lowest.to(DEVICE) if offsets else None,
        0 if offsets else 1 << (bits - 1),
        bits,
        group_size,
    )


def exact(x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None) -> Tensor:
    """The reference backend's projection, in float64."""
    numbers = reference_dequantize(weight) if isinstance(weight, QuantizedWeight) else weight
    wide = None if bias is None else bias.double()
    reference = ReferenceBackend()
    return reference.linear(x.double(), reference.pack(numbers.double(), wide))


def assert_projected(got: Tensor, x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None) -> None:
    """`got` is `exact`, relative to the size that its numbers typically have: a sum may cancel."""
    expected = exact(x, weight, bias)
    bound = TOLERANCE[x.dtype]
    assert got.dtype == x.dtype
    torch.testing.assert_close(
        got.double(), expected, rtol=bound, atol=bound * float(expected.abs().mean()) if expected.numel() else 0.0
    )


def tile_of(form: Form | None) -> int:
    """How many inputs a program takes at a time, of a dense weight if there is no form."""
    if form is None:
        return 64
    packed = rearrange(quantized(form, 1, form[1]))
    return packed.fields * packed.width


@contextmanager
def splits_of(tiles: int) -> Iterator[None]:
    """So many tiles at the least, so that weights need not be large to be split."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "TILES_PER_SPLIT", tiles)
        yield


@contextmanager
def additions() -> Iterator[list[str]]:
    """Grows whenever splits are added apart from the programs that sum them."""
    added: list[str] = []
    add = matmul.add_splits

    def noted(*arguments: Any) -> None:
        added.append("apart")
        add(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "add_splits", noted)
        yield added


def project(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None = None,
    *,
    batch_invariant: bool = False,
    target: Target = LAUNCH.target,
    projecting: Projecting = PROJECTING,
) -> Tensor:
    launch = JitLauncher(target)
    return linear(launch, x, pack(weight, bias), batch_invariant=batch_invariant, projecting=projecting)


@forms
@pytest.mark.parametrize(("outputs", "groups"), [(1, 1), (33, 3), (50, 5)])
def test_packing_loses_nothing(form: Form, outputs: int, groups: int) -> None:
    weight = quantized(form, outputs, groups * form[1])
    before = [value.clone() if isinstance(value, Tensor) else value for value in vars_of(weight)]
    packed = rearrange(weight)
    assert packed.shape == weight.shape
    assert torch.equal(dequantize(LAUNCH, packed, torch.float32), reference_dequantize(weight))
    for now, then in zip(vars_of(weight), before, strict=True):
        assert torch.equal(now, then) if isinstance(now, Tensor) else now == then


def vars_of(weight: QuantizedWeight) -> list[object]:
    return [getattr(weight, field.name) for field in fields(weight)]


@pytest.mark.parametrize("form", [(4, 128), (4, 32), (8, 64)], ids=str)
def test_an_integer_zero_is_kept(form: tuple[Literal[4, 8], int]) -> None:
    """Asymmetric formats subtract it before they scale. As a float16, scale * zero would err by 2^-11 of itself."""
    bits, group_size = form
    outputs, inputs = 64, 4 * group_size
    shifted = quantized((bits, group_size, True), outputs, inputs)
    zeros = torch.randint(0, 1 << bits, (outputs, 4), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    weight = replace(shifted, offsets=-shifted.scales.float() * zeros)
    codes = reference_dequantize(replace(shifted, scales=torch.ones_like(shifted.scales), offsets=None)).double()
    steps = codes - zeros.double().repeat_interleave(group_size, 1)
    wanted = steps * shifted.scales.double().repeat_interleave(group_size, 1)
    x = torch.ones(3, inputs, device=DEVICE)  # All rounding adds up.
    error = (project(x, weight).double() - wanted.sum(1)).abs().max()
    assert error < 1e-6 * wanted.abs().sum(1).max()


@dtypes
@pytest.mark.parametrize("bits", [4, 8])
def test_every_code_has_its_number_from_the_least_scale_to_the_greatest(
    bits: Literal[4, 8], dtype: torch.dtype
) -> None:
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).repeat(2, 1).to(DEVICE)
    scales = torch.tensor([[6e-8], [6e4 / 256]], dtype=torch.float16).to(DEVICE).expand(2, 2048 // bits // 32)
    weight = QuantizedWeight(codes, scales, None, 1 << (bits - 1), bits, 32)
    assert torch.equal(dequantize(LAUNCH, rearrange(weight), dtype), reference_dequantize(weight).to(dtype))


shapes = {"tokens": st.integers(1, 70), "outputs": st.integers(1, 70), "inputs": st.integers(1, 300)}
calls = {
    "dtype": st.sampled_from(list(TOLERANCE)),
    "biased": st.booleans(),
    "batch_invariant": st.booleans(),
    "chip": st.sampled_from(list(TARGETS)),
    "tiles_per_split": st.sampled_from([1, matmul.TILES_PER_SPLIT]),
}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(form=st.sampled_from(FORMS + MORE_FORMS), **shapes, **calls)
def test_quantised(
    form: Form,
    tokens: int,
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    biased: bool,
    batch_invariant: bool,
    chip: str,
    tiles_per_split: int,
) -> None:
    weight = quantized(form, outputs, -(-inputs // form[1]) * form[1])
    x = random(tokens, weight.shape[1], dtype=dtype, seed=1)
    bias = random(outputs, dtype=dtype, seed=2) if biased else None
    with splits_of(tiles_per_split):
        got = project(x, weight, bias, batch_invariant=batch_invariant, target=TARGETS[chip])
    assert_projected(got, x, weight, bias)


@forms
@dtypes
def test_lean_codes_are_the_same_numbers(form: Form, dtype: torch.dtype) -> None:
    weight = quantized(form, 70, 3 * tile_of(form))
    x = random(5, weight.shape[1], dtype=dtype, seed=1)
    assert torch.equal(project(x, weight, projecting=Projecting(lean=True)), project(x, weight))


@forms
def test_steps_of_several_tiles_are_the_same_sums(form: Form) -> None:
    """A row has several steps, each with scales of its own."""
    weight = quantized(form, 20, 8 * tile_of(form))
    x = random(3, weight.shape[1], seed=1)
    with splits_of(8):
        assert torch.equal(project(x, weight, projecting=Projecting(step=2)), project(x, weight))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    form=st.sampled_from(FORMS + MORE_FORMS),
    tokens=st.integers(1, 40),
    outputs=st.integers(1, 70),
    tiles=st.integers(1, 6),
    tiling=st.sampled_from([None, Tiling(16, 16, 1, 2), Tiling(32, 16, 2, 2, 6), Tiling(128, 32, 8, 2)]),
    step=st.sampled_from([1, 2, 4]),
    lean=st.booleans(),
)
def test_other_ways_of_projecting(
    form: Form, tokens: int, outputs: int, tiles: int, tiling: Tiling | None, step: int, lean: bool
) -> None:
    """Also with a last tile that is not whole, and with numbers of tiles that are no multiple of the step."""
    tile = tile_of(form)
    inputs = tiles * tile - (tile // 2 if tile > form[1] else 0)
    weight = quantized(form, outputs, -(-inputs // form[1]) * form[1])
    x, bias = random(tokens, weight.shape[1], dtype=torch.float16, seed=1), random(outputs, dtype=torch.float16, seed=2)
    with splits_of(1):
        got = project(x, weight, bias, projecting=Projecting(tiling, step, lean))
    assert_projected(got, x, weight, bias)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(**shapes, **calls)
def test_dense(
    tokens: int,
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    biased: bool,
    batch_invariant: bool,
    chip: str,
    tiles_per_split: int,
) -> None:
    weight = random(outputs, inputs, dtype=dtype) / inputs**0.5
    x = random(tokens, inputs, dtype=dtype, seed=1)
    bias = random(outputs, dtype=dtype, seed=2) if biased else None
    with splits_of(tiles_per_split):
        got = project(x, weight, bias, batch_invariant=batch_invariant, target=TARGETS[chip])
    assert_projected(got, x, weight, bias)


@forms
def test_many_outputs(form: Form) -> None:
    """More than one block of neighbouring programs, and the last one not whole."""
    weight = quantized(form, 8 * 64 + 80, form[1])
    x = random(5, weight.shape[1], dtype=torch.float16, seed=1)
    assert_projected(project(x, weight), x, weight, None)


@forms
@pytest.mark.parametrize("tokens", [FUSED_TOKENS, FUSED_TOKENS + 1])
def test_many_tokens(form: Form, tokens: int) -> None:
    weight = quantized(form, 20, -(-90 // form[1]) * form[1])
    x, bias = random(tokens, weight.shape[1], dtype=torch.float16, seed=1), random(20, dtype=torch.float16, seed=2)
    assert_projected(project(x, weight, bias), x, weight, bias)


@forms
def test_splits_are_the_same_sums_wherever_they_are_added(form: Form) -> None:
    """In a kernel of their own, where a chip would be idle otherwise, by the last program to have summed one of them,
    or in the program that computes them all.
    """
    inputs = 5 * tile_of(form)
    weight = quantized(form, 40, inputs)
    x, bias = random(3, inputs, seed=1), random(40, seed=2)
    chip = replace(LAUNCH.target, multiprocessors=2)
    with splits_of(1), additions() as added, pytest.MonkeyPatch.context() as patch:
        apart = project(x, weight, bias, target=chip)
        assert added == ["apart"]
        for _ in range(2):  # Counters are as they were, afterwards.
            folded = project(x, weight, bias, target=chip, projecting=Projecting(folded=True))
            assert torch.equal(folded, apart)
        assert added == ["apart"]
        # The same splits on a chip of half the size.
        patch.setattr(matmul, "PROGRAMS_PER_MULTIPROCESSOR", 2 * matmul.PROGRAMS_PER_MULTIPROCESSOR)
        within = project(x, weight, bias, target=replace(chip, multiprocessors=1))
        assert added == ["apart"]
    assert_projected(apart, x, weight, bias)
    assert torch.equal(apart, within)


@pytest.mark.parametrize("form", [*FORMS, None], ids=str)
@dtypes
def test_batch_invariant_rows_depend_on_nothing_else(form: Form | None, dtype: torch.dtype) -> None:
    """Bit for bit, on a chip that one row leaves idle, so that its splits are added apart, and many rows do not."""
    chip = replace(LAUNCH.target, multiprocessors=2)
    outputs, inputs = 30, 3 * tile_of(form)
    weight = quantized(form, outputs, inputs) if form else random(outputs, inputs, dtype=dtype) / inputs**0.5
    bias, x = random(outputs, dtype=dtype, seed=2), random(70, inputs, dtype=dtype, seed=1)
    rows = [0, 47, 69]
    with splits_of(1), additions() as added:
        alone = [project(x[row : row + 1], weight, bias, batch_invariant=True, target=chip)[0] for row in rows]
        assert added == ["apart"] * len(rows)
        some = project(x[40:57], weight, bias, batch_invariant=True, target=chip)
        added.clear()
        x[[1, 68]] = float("nan")
        together = project(x, weight, bias, batch_invariant=True, target=chip)
        assert not added
    for row, expected in zip(rows, alone, strict=True):
        assert torch.equal(together[row], expected)
    assert torch.equal(some[7], alone[1])
    assert together.isnan().any(1).nonzero().flatten().tolist() == [1, 68]


@dtypes
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (30, 100), (17, 2048), (64, 2500)])
@pytest.mark.parametrize("tiling", [RowTiling(), RowTiling(1, 256, 4), RowTiling(8, 4096, 4)], ids=str)
def test_one_token_by_rows(tiling: RowTiling, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    weight = random(outputs, inputs, dtype=dtype) / inputs**0.5
    x = random(3, inputs, dtype=dtype, seed=1)[1:2]
    for bias in (None, random(outputs, dtype=dtype, seed=2)):
        got = project(x, weight, bias, projecting=Projecting(rows=tiling))
        assert_projected(got, x, weight, bias)


def test_wide_tiles_change_no_bit() -> None:
    """They have the splits of few tokens. Whether tensor cores add up alike in a wide tile, only a GPU can tell."""
    outputs, tile = 100, tile_of(None)
    # Whole numbers, which NumPy adds up to the same sums in each tile of inputs, so far apart in size that the order in
    # which these are added shows.
    numbers = random(outputs, 8 * tile).mul(8).round()
    weight = numbers * torch.tensor([1, 1 << 14], device=DEVICE).repeat_interleave(tile).repeat(4)
    x = random(FUSED_TOKENS + 44, 8 * tile, seed=1).mul(8).round()
    chip = replace(LAUNCH.target, multiprocessors=2)
    wide = Projecting(wide=Tiling(128, 128, 8, 2))
    with splits_of(2):
        few = project(x, weight, None, batch_invariant=True, target=chip)
        many = project(x, weight, None, batch_invariant=True, target=chip, projecting=wide)
        alone = project(x[7:8], weight, None, batch_invariant=True, target=chip, projecting=wide)
    assert_projected(many, x, weight, None)
    assert torch.equal(many, few)
    assert torch.equal(many[7:8], alone)


@forms
def test_tokens_that_are_not_contiguous_and_none_at_all(form: Form) -> None:
    weight = quantized(form, 20, 256)
    x = random(256, 5, seed=1).T
    assert_projected(project(x, weight), x, weight, None)
    for batch_invariant in (False, True):
        assert project(x[:0], weight, batch_invariant=batch_invariant).shape == (0, 20)


def test_a_dense_weight_is_not_copied() -> None:
    weight = random(20, 30)
    assert pack(weight, None).weight is weight


def test_a_weight_that_was_not_packed_is_refused() -> None:
    reference = ReferenceBackend()
    weight = quantized((4, 32, False), 20, 64)
    with pytest.raises(AssertionError, match="pack"):
        linear(LAUNCH, random(2, 64), reference.pack(weight, None), batch_invariant=False)
