"""Loops over a row of float32 numbers in LLVM instructions, a whole register at a time.

Numba's own vectoriser takes half a register where the CPU has 512 bits.
"""

from collections.abc import Callable

from llvmlite import ir

from kernels.cpu import vectors as v
from kernels.cpu.target import register_floats

LANES = register_floats()
"""Numbers in a register."""

Body = Callable[[v.Value, int, list[v.Value]], list[v.Value]]


def over_row(
    builder: ir.IRBuilder,
    count: v.Value,
    carried: list[v.Value],
    body: Body,
    merge: Callable[[list[v.Value]], list[v.Value]] = lambda carried: carried,
) -> list[v.Value]:
    """Run `body` for each vector of a row, and number by number for those left, which may be none.

    It takes the index of its first number, its lanes, and values that are carried on; between the loops `merge` makes
    scalars of these.
    """
    lanes = ir.Constant(v.I64, LANES)
    vectors = builder.sdiv(count, lanes)
    carried = _loop(builder, vectors, carried, lambda i, values: body(builder.mul(i, lanes), LANES, values))
    done = builder.mul(vectors, lanes)
    rest = builder.sub(count, done)
    return _loop(builder, rest, merge(carried), lambda i, values: body(builder.add(done, i), 1, values))


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


def load(builder: ir.IRBuilder, address: v.Value, lanes: int) -> v.Value:
    """Numbers of a row, a vector or a scalar, at an address."""
    return v.load(builder, v.F32 if lanes == 1 else v.vector(v.F32, lanes), address)


def spread(builder: ir.IRBuilder, value: v.Value, lanes: int) -> v.Value:
    """A scalar in every lane; itself if there is one lane."""
    return value if lanes == 1 else v.splat(builder, value, lanes)
