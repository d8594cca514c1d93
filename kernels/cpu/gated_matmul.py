"""A projection to a gate and what it is multiplied with, whose product is rounded for the next projection.

The matrix unit computes 32 outputs of each for all tokens, and they become inputs of the next projection at once. Their
float32 numbers, several times as many bytes, never leave the second-level cache. Gates are multiplied while the unit
computes the next tokens' outputs, since it leaves the rest of the core idle.
"""

from typing import Any, NamedTuple

from llvmlite import ir

from kernels.backend import ActivationKind
from kernels.cpu import vectors as v
from kernels.cpu.activations import DEPTH, MOST_ROWS, TOKENS, Rounding, parts
from kernels.cpu.arguments import MultiplyArguments, StepWords
from kernels.cpu.beside import Work, work_on_rows
from kernels.cpu.gates import GATES
from kernels.cpu.instructions import unpack, words
from kernels.cpu.matmul import block_product, rows_a_block
from kernels.cpu.matrix_tile import PANELS, REST, panels_product, store_inputs
from kernels.cpu.matrix_unit import release
from kernels.cpu.operation import Function
from kernels.cpu.panels import LANES
from kernels.cpu.rounding import by_unit
from kernels.cpu.target import REGISTER_BYTES

WORK = REST + 4 * MOST_ROWS * 2 * PANELS * LANES
"""Place in scratch memory: behind outputs [MOST_ROWS, gate and up, PANELS * LANES] float32 lie words, see `_Gates`."""
HALF = 4 * PANELS * LANES
"""Bytes of a row's outputs of the gate, and of what it is multiplied with."""


class _Gates(NamedTuple):
    """Rows whose gates are to be multiplied, as words of memory."""

    begin: v.Value
    end: v.Value
    outputs: v.Value
    """Address of the first row's outputs."""
    made: v.Value
    """Address of the first row's place in the inputs of the next projection."""
    tile_bytes: v.Value
    """Bytes from a tile of these inputs to the next."""


def define_gated_multiply(rounding: Rounding, kind: ActivationKind, made: Rounding) -> Function:
    """Multiply activations with a weight in panels: first those of the gate, then those of what it is multiplied with.

    The products are rounded as in `made`. The operation does nothing in steps in which the matrix unit does not
    multiply. Its arguments are `MultiplyArguments`.
    """
    form, unit_from = rounding.form, rounding.unit_from
    bits, group, offsets, group_bytes, count = form.bits, form.group, form.offsets, form.group_bytes, parts(form)
    gate_rows, gate_beside = _gating(kind, made)
    multiply_block, multiply_beside = block_product(panels_product()), block_product(panels_product(gate_beside))
    made_bytes, told_words = parts(made.form) * REGISTER_BYTES, len(_Gates._fields)

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: MultiplyArguments = unpack(MultiplyArguments, arguments)
        rows, size = unpack(StepWords, args.step).rows, args.outputs // 2
        spans, block = size // DEPTH, rows_a_block(rows, args.threads)
        if chunk < 0:
            return spans * ((rows + block - 1) // block) if by_unit(unit_from, rows) else 0
        top, index = chunk // spans * block, chunk % spans
        many, first = min(block, rows - top), index * PANELS
        beside, outputs, work = first + size // LANES, scratch + REST, scratch + WORK
        begun = args.bias + 4 * first * LANES if args.bias != 0 else 0
        begun_beside = args.bias + 4 * beside * LANES if args.bias != 0 else 0
        place = args.out + (top // TOKENS * spans + index) * made_bytes
        told = words(work, told_words)
        told[2], told[3], told[4] = outputs, place, spans * made_bytes
        # fmt: off
        multiply_block(
            bits, group, offsets, count, group_bytes, args, top, many, first, first + PANELS - 1,
            begun, outputs, 2 * HALF, scratch, 0,
        )
        multiply_beside(
            bits, group, offsets, count, group_bytes, args, top, many, beside, beside + PANELS - 1,
            begun_beside, outputs + HALF, 2 * HALF, scratch, work,
        )
        # fmt: on
        told[0], told[1] = told[1], many
        gate_rows(work)
        release(0)
        return 0

    return run


def _gating(kind: ActivationKind, made: Rounding) -> tuple[Any, Work]:
    """`work_on_rows` that multiplies the gates of rows, and rounds the products as in `made`."""
    _, _, split, count, _ = made.constants

    def emit_row(builder: ir.IRBuilder, told: _Gates, row: v.Value) -> None:
        outputs = builder.add(told.outputs, builder.mul(row, ir.Constant(v.I64, 2 * HALF)))
        halves = [v.load(builder, v.vector(v.F32, DEPTH), outputs, half) for half in (0, HALF)]
        tile, place = (step(row, ir.Constant(v.I64, TOKENS)) for step in (builder.udiv, builder.urem))
        tile_at = builder.add(told.made, builder.mul(tile, told.tile_bytes))
        at = builder.add(tile_at, builder.mul(place, ir.Constant(v.I64, 2 * DEPTH)))
        store_inputs(builder, GATES[kind](builder, *halves), bool(split), count, at)

    return work_on_rows(_Gates, emit_row)
