"""Numbers as the KV cache stores them, and back: float32, bfloat16, or FP8 (e4m3) divided by a scale."""

from typing import Any

import numpy as np
import torch
from numba import njit

from kernels.cpu.instructions import FLAGS, INFINITY, SIGNLESS, bits_of, floats, from_bits, halves, octets

FLOAT32, BFLOAT16, FP8 = 4, 2, 1
"""A way to store numbers is named by its bytes."""
STORED = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float8_e4m3fn: FP8}


@njit(inline="always")
def _to_bfloat16(x: Any) -> Any:
    bits = bits_of(x)
    rounded = (bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16)
    # Rounding would carry a NaN into the sign.
    return rounded if (bits & SIGNLESS) <= INFINITY else np.int32(0x7FC0)


@njit(inline="always")
def _to_fp8(x: Any) -> Any:
    magnitude = min(abs(x), np.float32(448))
    bits = bits_of(magnitude)
    normal = ((bits + np.int32(0x7FFFF) + ((bits >> np.int32(20)) & np.int32(1))) >> np.int32(20)) - np.int32(960)
    tiny = np.int32(np.rint(magnitude * np.float32(512)))
    code = tiny if magnitude < np.float32(0.015625) else normal
    code = code if x == x else np.int32(0x7F)
    return code | ((bits_of(x) >> np.int32(24)) & np.int32(0x80))


@njit(inline="always")
def _from_fp8(code: Any) -> Any:
    # e4m3's exponent in float32's place is 2^120 too small.
    magnitude = from_bits((code & np.int32(0x7F)) << np.int32(20)) * np.float32(2.0**120)
    magnitude = magnitude if (code & np.int32(0x7F)) != np.int32(0x7F) else np.float32(np.nan)
    return -magnitude if code & np.int32(0x80) else magnitude


@njit(inline="always", fastmath=FLAGS)
def store(stored: int, source: Any, address: int, count: int, scale: Any) -> None:
    """Store `count` float32 numbers at `address`; `stored` is a constant."""
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
    """What `store` put at `address`, into `target`."""
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
