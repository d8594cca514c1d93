"""Conversion between float32 and the KV cache's forms: float32, bfloat16, or FP8 (e4m3) divided by a scale."""

from typing import Any

import numpy as np
import torch
from numba import njit

from kernels.cpu.instructions import FLAGS, INFINITY, SIGNLESS, bits_of, floats, from_bits, halves, octets

FLOAT32, BFLOAT16, FP8 = 4, 2, 1
"""The forms in which the cache stores a number; each constant is the form's size in bytes."""
STORED = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float8_e4m3fn: FP8}


@njit(inline="always")
def _to_bfloat16(x: Any) -> Any:
    """The bits of the bfloat16 nearest to a float32, ties to even."""
    bits = bits_of(x)
    rounded = (bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16)
    # Rounding could carry the bits of a NaN into the sign, so a NaN gets fixed bits.
    return rounded if (bits & SIGNLESS) <= INFINITY else np.int32(0x7FC0)


@njit(inline="always")
def _to_fp8(x: Any) -> Any:
    """The bits of the e4m3 number nearest to a float32, ties to even, clamped to 448 (arXiv 2209.05433)."""
    magnitude = min(abs(x), np.float32(448))
    bits = bits_of(magnitude)
    normal = ((bits + np.int32(0x7FFFF) + ((bits >> np.int32(20)) & np.int32(1))) >> np.int32(20)) - np.int32(960)
    tiny = np.int32(np.rint(magnitude * np.float32(512)))
    code = tiny if magnitude < np.float32(0.015625) else normal
    code = code if x == x else np.int32(0x7F)
    return code | ((bits_of(x) >> np.int32(24)) & np.int32(0x80))


@njit(inline="always")
def _from_fp8(code: Any) -> Any:
    """The float32 that equals the e4m3 number with the bits `code`."""
    # e4m3's bits in float32's place are a number that is too small by a factor of 2^120.
    magnitude = from_bits((code & np.int32(0x7F)) << np.int32(20)) * np.float32(2.0**120)
    magnitude = magnitude if (code & np.int32(0x7F)) != np.int32(0x7F) else np.float32(np.nan)
    return -magnitude if code & np.int32(0x80) else magnitude


@njit(inline="always", fastmath=FLAGS)
def store(stored: int, source: Any, address: int, count: int, scale: Any) -> None:
    """Store `count` float32 numbers of `source` at `address` in the form `stored`, a compile-time constant."""
    if stored == FLOAT32:
        wide = floats(address, count)
        for i in range(count):
            wide[i] = source[i]
    elif stored == BFLOAT16:
        short = halves(address, count)
        for i in range(count):
            short[i] = _to_bfloat16(source[i])
    else:
        codes = octets(address, count)
        for i in range(count):
            codes[i] = _to_fp8(source[i] / scale)


@njit(inline="always", fastmath=FLAGS)
def fetch(stored: int, address: int, target: Any, count: int, scale: Any) -> None:
    """Read `count` numbers in the form `stored` at `address` into `target`, float32."""
    if stored == FLOAT32:
        wide = floats(address, count)
        for i in range(count):
            target[i] = wide[i]
    elif stored == BFLOAT16:
        short = halves(address, count)
        for i in range(count):
            target[i] = from_bits(np.int32(short[i]) << np.int32(16))
    else:
        codes = octets(address, count)
        for i in range(count):
            target[i] = _from_fp8(np.int32(codes[i])) * scale
