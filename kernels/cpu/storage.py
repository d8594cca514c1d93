"""Conversion between float32 and the KV cache's forms, see `cache_forms.py`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from kernels.cpu import vectors as v
from kernels.cpu.cache_forms import BFLOAT16, FLOAT32
from kernels.cpu.instructions import FLAGS, INFINITY, SIGNLESS, bits_of, floats, halves, instruction, octets
from kernels.cpu.rows import LANES, load, over_row, place


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


def _emit_beside(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    source, size, out = values

    def write(first: v.Value, lanes: int, carried: list[v.Value]) -> list[v.Value]:
        numbers = load(builder, place(builder, source, first), lanes)
        if lanes == 1:
            numbers = builder.bitcast(numbers, v.vector(v.F32, 1))
        bits = v.to_bfloat16(builder, numbers)
        places = ir.Constant(v.vector(v.I32, 2 * lanes), [lane // 2 for lane in range(2 * lanes)])
        twice = builder.shuffle_vector(bits, bits, places)
        v.store_where(builder, twice, [lane % 2 == 0 for lane in range(2 * lanes)], place(builder, out, first))
        return carried

    over_row(builder, size, [], write, lanes=LANES)
    return size


store_beside = instruction(types.int64, [types.int64] * 3, _emit_beside)
"""(row, size, address): store a row of float32 numbers as bfloat16 in every second place from the address on; returns
the size. The other places are not touched, since another thread may write to them.
"""


def widen(builder: ir.IRBuilder, stored: int, codes: v.Value) -> v.Value:
    """Numbers in the form `stored`, given by their bits in the lowest bits of i32 [lanes], as float32 [lanes].

    Bits above a number's own are ignored.
    """
    floats_like = v.vector(v.F32, codes.type.count)
    if stored == FLOAT32:
        return builder.bitcast(codes, floats_like)
    if stored == BFLOAT16:
        return builder.bitcast(builder.shl(codes, v.like(codes, 16)), floats_like)
    magnitude = builder.and_(codes, v.like(codes, 0x7F))
    # The exponent's bias becomes float32's. Below the least normal number, 2^-6 is added as an implicit bit, and
    # subtracted again.
    tiny = builder.icmp_unsigned("<", magnitude, v.like(codes, 8))
    bias = builder.select(tiny, v.like(codes, 121 << 23), v.like(codes, 120 << 23))
    number = builder.bitcast(builder.add(builder.shl(magnitude, v.like(codes, 20)), bias), floats_like)
    number = builder.fsub(number, builder.select(tiny, v.like(number, 2.0**-6), v.like(number, 0)))
    unknown = builder.icmp_unsigned("==", magnitude, v.like(codes, 0x7F))
    number = builder.select(unknown, v.like(number, float("nan")), number)
    sign = builder.shl(builder.and_(codes, v.like(codes, 0x80)), v.like(codes, 24))
    return builder.bitcast(builder.or_(builder.bitcast(number, codes.type), sign), floats_like)
