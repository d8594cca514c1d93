"""Sums of exponentials over a row of logits in LLVM instructions."""

from collections.abc import Sequence

from llvmlite import ir
from numba import types

from kernels.cpu import vectors as v
from kernels.cpu.instructions import SIGNLESS, instruction
from kernels.cpu.rows import LANES, load, over_row, place, spread


def _emit_peak(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    row, count = values

    def larger(a: v.Value, b: v.Value) -> v.Value:
        return builder.select(builder.icmp_signed(">", a, b), a, b)

    def ordered(bits: v.Value) -> v.Value:
        # As integers, the bits of negative floats are in the opposite order, until all but the sign are inverted.
        sign = builder.ashr(bits, v.like(bits, 31))
        return builder.xor(bits, builder.and_(sign, v.like(bits, int(SIGNLESS))))

    def raise_peak(first: v.Value, lanes: int, carried: list[v.Value]) -> list[v.Value]:
        bits = builder.bitcast(load(builder, place(builder, row, first), lanes), carried[0].type)
        return [larger(carried[0], ordered(bits))]

    lowest = [v.filled(v.I32, LANES, -(2**31))]
    (highest,) = over_row(builder, count, lowest, raise_peak, lambda peaks: [v.across(builder, larger, peaks[0])])
    return builder.bitcast(ordered(highest), v.F32)


find_peak = instruction(types.float32, [types.int64, types.int64], _emit_peak)
"""(logits, count): the largest of the logits; any number if one of them is a NaN."""


def _emit_mass(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    row, count, peak, least = values

    def add(first: v.Value, lanes: int, carried: list[v.Value]) -> list[v.Value]:
        mass, above = carried
        logits = load(builder, place(builder, row, first), lanes)
        weights = v.exp(builder, builder.fsub(logits, spread(builder, peak, lanes)))
        counted = builder.fcmp_ordered(">", logits, spread(builder, least, lanes))
        return [builder.fadd(mass, weights), builder.add(above, builder.zext(counted, above.type))]

    def merge(carried: list[v.Value]) -> list[v.Value]:
        mass, above = carried
        return [v.across(builder, builder.fadd, mass), v.across(builder, builder.add, above)]

    zeros = [v.filled(v.F32, LANES, 0), v.filled(v.I32, LANES, 0)]
    mass, above = over_row(builder, count, zeros, add, merge)
    low = builder.zext(builder.bitcast(mass, v.I32), v.I64)
    return builder.or_(low, builder.shl(builder.zext(above, v.I64), ir.Constant(v.I64, 32)))


mass_and_count = instruction(types.int64, [types.int64, types.int64, types.float32, types.float32], _emit_mass)
"""(logits, count, peak, least): the sum of e^(logit - peak), and the number of logits above the least one.

The lower half of the result has the bits of the sum, a float32, and the upper half the number.
"""
