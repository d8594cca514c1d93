"""Loops over a row of float32 numbers in LLVM instructions, a whole register at a time.

Numba's own vectoriser takes half a register where the CPU has 512 bits.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types

from kernels.cpu import vectors as v
from kernels.cpu.instructions import instruction
from kernels.cpu.target import register_floats

LANES = register_floats()
"""Numbers in a register."""
WIDE = 2 * LANES
"""Numbers in two registers: two chains of arithmetic take hardly longer than one, in which each step waits."""

Body = Callable[[v.Value, int, list[v.Value]], list[v.Value]]


def over_row(
    builder: ir.IRBuilder,
    count: v.Value,
    carried: list[v.Value],
    body: Body,
    merge: Callable[[list[v.Value]], list[v.Value]] = lambda carried: carried,
    lanes: int = LANES,
) -> list[v.Value]:
    """Run `body` for each vector of a row, of so many `lanes`, and number by number for those left, which may be none.

    It takes the index of its first number, its lanes, and values that are carried on; between the loops `merge` makes
    scalars of these.
    """
    width = ir.Constant(v.I64, lanes)
    vectors = builder.sdiv(count, width)
    carried = _loop(builder, vectors, carried, lambda i, values: body(builder.mul(i, width), lanes, values))
    done = builder.mul(vectors, width)
    rest = builder.sub(count, done)
    return _loop(builder, rest, merge(carried), lambda i, values: body(builder.add(done, i), 1, values))


def sum_over(builder: ir.IRBuilder, count: v.Value, term: Callable[[v.Value, int], v.Value]) -> v.Value:
    """The sum of a row's terms, in an order that depends on their number alone.

    `term` makes a vector or a scalar of them, from the index of the first one and the lanes.
    """

    def add(first: v.Value, lanes: int, carried: list[v.Value]) -> list[v.Value]:
        # Without this LLVM would reorder the sum, and not alike for every term.
        return [v.rounded(builder, builder.fadd(carried[0], term(first, lanes)))]

    zeros = v.filled(v.F32, WIDE, 0)
    (total,) = over_row(builder, count, [zeros], add, lambda sums: [v.across(builder, builder.fadd, sums[0])], WIDE)
    return total


def mapped(rows: int, numbers: int, compute: Callable[..., v.Value], lanes: int = WIDE) -> Any:
    """A function for kernels that writes a row of what `compute` makes of those at the same place of other rows.

    Its arguments are the addresses of so many `rows`, so many `numbers` (float32), the rows' size, and the address to
    write to; it returns the size. `compute` takes the builder, and a vector or a scalar for each row and each number.
    Vectors have so many `lanes`.
    """

    def emit(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
        *given, size, out = values

        def write(first: v.Value, width: int, carried: list[v.Value]) -> list[v.Value]:
            loaded = [load(builder, place(builder, row, first), width) for row in given[:rows]]
            made = compute(builder, *loaded, *[spread(builder, number, width) for number in given[rows:]])
            v.store(builder, made, place(builder, out, first))
            return carried

        over_row(builder, size, [], write, lanes=lanes)
        return size

    return instruction(types.int64, [types.int64] * rows + [types.float32] * numbers + [types.int64] * 2, emit)


def _loop(
    builder: ir.IRBuilder,
    count: v.Value,
    initial: list[v.Value],
    body: Callable[[v.Value, list[v.Value]], list[v.Value]],
) -> list[v.Value]:
    """`vectors.repeat` for any count, also 0."""
    before = builder.block
    with builder.if_then(builder.icmp_signed(">", count, ir.Constant(v.I64, 0))):
        last = v.repeat(builder, count, initial, body)
        inside = builder.block
    carried = [builder.phi(value.type) for value in initial]
    for value, first, later in zip(carried, initial, last, strict=True):
        value.add_incoming(first, before)
        value.add_incoming(later, inside)
    return carried


def place(builder: ir.IRBuilder, row: v.Value, index: v.Value) -> v.Value:
    """The address of a row's number."""
    return builder.add(row, builder.mul(index, ir.Constant(v.I64, 4)))


def load(builder: ir.IRBuilder, address: v.Value, lanes: int) -> v.Value:
    """Numbers of a row, a vector or a scalar, at an address."""
    return v.load(builder, v.F32 if lanes == 1 else v.vector(v.F32, lanes), address)


def spread(builder: ir.IRBuilder, value: v.Value, lanes: int) -> v.Value:
    """A scalar in every lane; itself if there is one lane."""
    return value if lanes == 1 else v.splat(builder, value, lanes)


copy_row = mapped(1, 0, lambda builder, x: x, LANES)
"""(row, size, out): write a row; returns the size."""
add_row = mapped(2, 0, lambda builder, x, y: builder.fadd(x, y), LANES)
"""(x, y, size, out): write the sum of two rows; returns the size."""
