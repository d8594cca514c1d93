"""E4M3 against torch's own conversion: every code, and what lies on, between and beside them."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.fp8 import converts_e4m3, decode_e4m3, decode_e4m3_pairs, encode_e4m3
from kernels.gpu.launch import TARGETS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CODES = torch.arange(256, dtype=torch.int32).to(torch.uint8)
NUMBERS = CODES.view(torch.float8_e4m3fn).float()


@triton.jit
def _encode(x, codes, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(codes + at, encode_e4m3(tl.load(x + at)))


@triton.jit
def _decode(codes, out, NATIVE: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, decode_e4m3(tl.load(codes + at), NATIVE))


def encode(x: Tensor) -> Tensor:
    size = triton.next_power_of_2(len(x))
    padded = torch.zeros(size, device=DEVICE)
    padded[: len(x)] = x
    codes = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    _encode[(1,)](padded, codes, SIZE=size)
    return codes[: len(x)].cpu()


@triton.jit
def _decode_pairs(pairs, low, high, NATIVE: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    lows, highs = decode_e4m3_pairs(tl.load(pairs + at), NATIVE)
    tl.store(low + at, lows)
    tl.store(high + at, highs)


def decode(*, native: bool) -> Tensor:
    out = torch.full((256,), 7.0, dtype=torch.float16, device=DEVICE)
    with np.errstate(over="ignore", invalid="ignore"):
        _decode[(1,)](CODES.to(DEVICE), out, NATIVE=native, SIZE=256)
    return out.cpu()


def test_every_code_decodes_to_its_number() -> None:
    out = decode(native=False)
    torch.testing.assert_close(out.float(), NUMBERS, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(out.signbit()[:127], torch.zeros(127, dtype=torch.bool))
    assert torch.equal(out.signbit()[128:255], torch.ones(127, dtype=torch.bool))


def test_a_chips_own_conversion_gives_the_same_numbers() -> None:
    finite = ~NUMBERS.isnan()
    assert torch.equal(decode(native=True).float()[finite], NUMBERS[finite])


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_every_pair_of_codes_decodes_to_both_numbers(native: bool) -> None:
    """Triton's interpreter runs no chip's instructions."""
    codes = torch.cartesian_prod(CODES, CODES).to(DEVICE)
    low, high = torch.full((2, 1 << 16), 7.0, dtype=torch.float16, device=DEVICE).unbind()
    with np.errstate(over="ignore", invalid="ignore"):
        _decode_pairs[(1,)](codes.view(torch.int16), low, high, NATIVE=native, SIZE=1 << 16, num_warps=16)
    expected = torch.cartesian_prod(NUMBERS, NUMBERS)
    torch.testing.assert_close(torch.stack([low, high], 1).cpu().float(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
def test_a_chips_own_conversion_keeps_nan() -> None:
    """Triton's interpreter does not."""
    assert decode(native=True)[NUMBERS.isnan()].isnan().all()


def test_every_number_encodes_to_its_code() -> None:
    assert torch.equal(encode(NUMBERS), CODES)


def test_what_lies_between_two_numbers_goes_to_the_nearer_and_a_tie_to_the_even_code() -> None:
    ladder = NUMBERS[:127]
    middles = (ladder[1:] + ladder[:-1]) / 2
    below, above = middles.nextafter(torch.zeros(())), middles.nextafter(torch.full((), 500.0))
    even = (CODES[:126].int() + 1) // 2 * 2
    for sign, bit in (1, 0), (-1, 0x80):
        assert torch.equal(encode(sign * middles).int(), even + bit)
        assert torch.equal(encode(sign * below).int(), CODES[:126].int() + bit)
        assert torch.equal(encode(sign * above).int(), CODES[1:127].int() + bit)


def test_any_float_encodes_as_torch_clamps_and_rounds_it() -> None:
    """Random bit patterns: subnormals, infinities and NaNs among them, and as many of each exponent e4m3 has."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (1 << 15,), generator=generator, dtype=torch.int64).to(torch.int32)
    mantissas = torch.rand(1 << 15, generator=generator) + 1
    near = torch.ldexp(mantissas, torch.randint(-12, 12, (1 << 15,), generator=generator))
    edges = torch.tensor([448.0, 464.0, 465.0, 1e30, float("inf"), float("-inf"), 0.0, -0.0, 1e-45, -1e-45])
    x = torch.cat([bits.view(torch.float32), near, -near, edges])
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn)
    codes = encode(x)
    assert torch.equal(codes[~x.isnan()], expected.view(torch.uint8)[~x.isnan()])
    assert codes.view(torch.float8_e4m3fn)[x.isnan()].float().isnan().all()
    assert x.isnan().any()


def test_the_chips_that_have_the_instructions() -> None:
    assert [name for name, target in TARGETS.items() if converts_e4m3(target)] == ["sm_90", "sm_100"]
