"""The walks over a token's numbers that a norm takes, in LLVM instructions. Rows are given by their addresses."""

from collections.abc import Sequence

from llvmlite import ir
from numba import types

from kernels.cpu import vectors as v
from kernels.cpu.instructions import instruction
from kernels.cpu.rows import load, mapped, place, spread, sum_over

_ADDRESS = _COUNT = types.int64
_NUMBER = types.float32


def _emit_add(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    x, residual, stream, size = values

    def term(first: v.Value, lanes: int) -> v.Value:
        parts = [load(builder, place(builder, row, first), lanes) for row in (x, residual)]
        number = builder.fadd(*parts)
        v.store(builder, number, place(builder, stream, first))
        return builder.fmul(number, number)

    return sum_over(builder, size, term)


add_rows = instruction(_NUMBER, [_ADDRESS, _ADDRESS, _ADDRESS, _COUNT], _emit_add)
"""(x, residual, stream, size): write x + residual to `stream`; returns the sum of the squares of what is written."""


def _emit_sum(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    row, size = values
    return sum_over(builder, size, lambda first, lanes: load(builder, place(builder, row, first), lanes))


sum_row = instruction(_NUMBER, [_ADDRESS, _COUNT], _emit_sum)
"""(row, size): the sum of a row."""


def _emit_squares(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    row, size, centre = values

    def term(first: v.Value, lanes: int) -> v.Value:
        distance = builder.fsub(load(builder, place(builder, row, first), lanes), spread(builder, centre, lanes))
        return builder.fmul(distance, distance)

    return sum_over(builder, size, term)


sum_squares = instruction(_NUMBER, [_ADDRESS, _COUNT, _NUMBER], _emit_squares)
"""(row, size, centre): the sum of the squares of a row's distances from the centre."""


def _scaled(builder: ir.IRBuilder, number: v.Value, weight: v.Value, factor: v.Value) -> v.Value:
    return builder.fmul(builder.fmul(number, factor), weight)


def _shifted(
    builder: ir.IRBuilder, number: v.Value, weight: v.Value, bias: v.Value, factor: v.Value, centre: v.Value
) -> v.Value:
    return builder.fadd(_scaled(builder, builder.fsub(number, centre), weight, factor), bias)


scale_row = mapped(2, 1, _scaled)
"""(row, weight, factor, size, out): write row * factor * weight; returns the size."""
shift_row = mapped(3, 2, _shifted)
"""(row, weight, bias, factor, centre, size, out): write (row - centre) * factor * weight + bias; returns the size."""
