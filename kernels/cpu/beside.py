"""Work on some tokens' outputs while the matrix unit computes others', since it leaves the rest of a core idle.

Memory tells what is to be done: words at an address, of which the first two are the rows, a beginning and an end.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from llvmlite import ir
from numba import types

from kernels.cpu import vectors as v
from kernels.cpu.activations import TOKENS
from kernels.cpu.instructions import instruction

Work = Callable[[ir.IRBuilder, v.Value, v.Value], Callable[[v.Value], None]]
"""(builder, address of the words, number of steps) -> what emits a step's part of the work on the rows of two tiles."""

Told = TypeVar("Told", bound=Any)
"""The words as a named tuple; the first two are `begin` and `end`."""


def work_on_rows(
    told: Callable[..., Told], emit_row: Callable[[ir.IRBuilder, Told, v.Value], None]
) -> tuple[Any, Work]:
    """A function for kernels that works on all rows, and the `Work` that does so in steps.

    `emit_row` emits the work on one row: (builder, words, index of the row).
    """
    count = len(told._fields)

    def words_at(builder: ir.IRBuilder, address: v.Value) -> Told:
        return told(*[v.load(builder, v.I64, address, 8 * index) for index in range(count)])

    def emit_rows(builder: ir.IRBuilder, words: Told, begin: v.Value, end: v.Value) -> None:
        rows = builder.sub(end, begin)

        def work(index: v.Value, _: list[v.Value]) -> list[v.Value]:
            emit_row(builder, words, builder.add(begin, index))
            return []

        with builder.if_then(builder.icmp_signed(">", rows, ir.Constant(v.I64, 0))):
            v.repeat(builder, rows, [], work)

    def begin_work(builder: ir.IRBuilder, address: v.Value, steps: v.Value) -> Callable[[v.Value], None]:
        words = words_at(builder, address)
        each = builder.udiv(builder.add(steps, ir.Constant(v.I64, 2 * TOKENS - 1)), steps)

        def go_on(step: v.Value) -> None:
            begin = builder.add(words[0], builder.mul(step, each))
            end = builder.add(begin, each)
            last = builder.icmp_signed("<", words[1], end)
            emit_rows(builder, words, begin, builder.select(last, words[1], end))

        return go_on

    def emit(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
        words = words_at(builder, values[0])
        emit_rows(builder, words, words[0], words[1])
        return values[0]

    return instruction(types.int64, [types.int64], emit), begin_work
