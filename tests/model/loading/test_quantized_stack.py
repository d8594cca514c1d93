"""Stacks of quantised parts mean what their parts do."""

from typing import Literal

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.reference import dequantize
from model.checkpoint.group_quantized import GroupQuantized
from model.loading.quantized_stack import stack_quantized

CPU = torch.device("cpu")
COLUMNS = 96
HALF = 2.0**-11
"""The relative rounding error of float16."""


@st.composite
def parts(draw: st.DrawFn, group_sizes: tuple[int, ...] = (16, 32, 48, 96)) -> GroupQuantized:
    rows, bits, group_size = draw(st.integers(1, 4)), draw(st.sampled_from([4, 8])), draw(st.sampled_from(group_sizes))
    return part(rows, bits, group_size, shifted=draw(st.booleans()), seed=draw(st.integers(0, 99)))


def part(rows: int, bits: int, group_size: int, *, shifted: bool, seed: int = 0) -> GroupQuantized:
    generator = np.random.default_rng(seed)
    shape = (rows, COLUMNS // group_size)
    scales, offsets = (generator.normal(0, 0.1, shape).astype(np.float32) for _ in range(2))
    width: Literal[4, 8] = 4 if bits == 4 else 8
    codes = generator.integers(0, 1 << bits, (rows, COLUMNS), dtype=np.uint8)
    return GroupQuantized(codes, scales, offsets if shifted else None, width)


def unchanged(index: int, rows: Tensor) -> Tensor:
    return rows


@given(st.lists(parts(), min_size=1, max_size=3))
def test_a_stack_is_its_parts_to_half_precision(stack: list[GroupQuantized]) -> None:
    weight = stack_quantized(stack, unchanged, CPU)
    assert weight is not None
    expected = torch.from_numpy(np.concatenate([one.dequantized() for one in stack]))
    assert weight.shape == expected.shape
    steps = 255 if weight.bits == 8 else 15
    # Each weight is a scale times at most as many steps, and an offset, each rounded once.
    bound = HALF * (weight.scales.abs().float() * steps).repeat_interleave(weight.group_size, dim=1)
    if weight.offsets is not None:
        bound += HALF * weight.offsets.abs().float().repeat_interleave(weight.group_size, dim=1)
    assert ((dequantize(weight) - expected).abs() <= bound * (1 + 1e-3) + 1e-6).all()


@given(st.lists(parts(), min_size=1, max_size=3))
def test_the_form_is_the_least_that_holds_all(stack: list[GroupQuantized]) -> None:
    weight = stack_quantized(stack, unchanged, CPU)
    assert weight is not None
    shifted = any(one.offsets is not None for one in stack)
    assert weight.bits == max(one.bits for one in stack)
    assert (weight.offsets is not None) == shifted
    assert weight.zero == (0 if shifted else 1 << (weight.bits - 1))
    # 48 and 96 are no powers of two: 16 and 32 divide them.
    assert weight.group_size == min({16: 16, 32: 32, 48: 16, 96: 32}[one.group_size] for one in stack)
    assert (weight.codes.dtype, weight.scales.dtype) == (torch.uint8, torch.float16)


def test_symmetric_parts_of_unlike_bits_are_exact_but_for_their_scales() -> None:
    narrow, wide = part(2, 4, 32, shifted=False), part(3, 8, 32, shifted=False, seed=1)
    for one in (narrow, wide):
        one.scales[:] = one.scales.astype(np.float16)
    weight = stack_quantized([narrow, wide], unchanged, CPU)
    assert weight is not None
    assert torch.equal(dequantize(weight), torch.from_numpy(np.concatenate([narrow.dequantized(), wide.dequantized()])))


def test_an_integer_zero_survives() -> None:
    """The asymmetric formats' w = scale * (code - zero), with scales that float16 holds."""
    shifted = part(3, 4, 32, shifted=True)
    shifted.scales[:] = shifted.scales.astype(np.float16)
    assert shifted.offsets is not None
    shifted.offsets[:] = -shifted.scales * np.random.default_rng(2).integers(1, 16, shifted.scales.shape)
    weight = stack_quantized([shifted], unchanged, CPU)
    assert weight is not None
    assert torch.equal(dequantize(weight), torch.from_numpy(shifted.dequantized()))


def test_rows_are_ordered_with_all_that_belongs_to_them() -> None:
    one, other = part(4, 4, 16, shifted=True), part(2, 4, 16, shifted=True, seed=1)
    turned = stack_quantized([one, other], lambda index, rows: rows if index else rows.flip(0), CPU)
    plain = stack_quantized([one, other], unchanged, CPU)
    assert turned is not None
    assert plain is not None
    assert torch.equal(dequantize(turned), dequantize(plain)[[3, 2, 1, 0, 4, 5]])


def test_groups_that_are_too_small_are_not_stacked() -> None:
    assert stack_quantized([part(2, 4, 8, shifted=True)], unchanged, CPU) is None
    assert stack_quantized([part(2, 4, 16, shifted=True), part(2, 4, 24, shifted=True)], unchanged, CPU) is None
