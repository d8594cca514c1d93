"""Activations rounded for a product with weights of few bits: to integer codes in groups, or to bfloat16 numbers."""

from numba import njit

from kernels.cpu.activations import DEPTH, SUMS_BYTES, TILE, TOKENS, Rounding
from kernels.cpu.arguments import RoundArguments, StepWords
from kernels.cpu.instructions import floats, unpack
from kernels.cpu.matrix_tile import round_inputs
from kernels.cpu.operation import Function
from kernels.cpu.target import REGISTER_BYTES
from kernels.cpu.tile import quantize_group

TOKENS_A_CHUNK = 8
"""Number of tokens in a chunk of work."""


@njit(inline="always")
def by_unit(unit_from: int, rows: int) -> bool:
    """Whether the matrix unit multiplies a step of so many tokens; see `Rounding.unit_from`."""
    return unit_from > 0 and rows >= unit_from


@njit(inline="always")
def round_row(
    group: int,
    low: int,
    split: int,
    count: int,
    unit_from: int,
    row: int,
    rows: int,
    x: int,
    columns: int,
    rounded: int,
    sums: int,
) -> None:
    """Round the token `row` of `rows`, with activations [columns] float32 at x; the first five are `constants`.

    The sums of tokens that fill the last tile become zeros, since chance numbers may be ones that take long to add.
    """
    if by_unit(unit_from, rows):
        tile = rounded + row // TOKENS * (columns // DEPTH) * count * REGISTER_BYTES
        for step in range(columns // DEPTH):
            place = tile + step * count * REGISTER_BYTES + row % TOKENS * 2 * DEPTH
            round_inputs(split, count, x + 4 * DEPTH * step, place)
    else:
        groups = columns // group
        for g in range(groups):
            at = (row // TOKENS * groups + g) * TOKENS + row % TOKENS
            quantize_group(group, low, split, x + 4 * g * group, rounded + at * group * 2, sums + at * SUMS_BYTES)
            if row == rows - 1:
                beyond = floats(sums + at * SUMS_BYTES, 2 * TILE)
                for i in range(2, 2 * (TILE - row % TILE)):
                    beyond[i] = 0.0


def define_round(rounding: Rounding) -> Function:
    """Round activations. Its arguments are `RoundArguments`."""
    group, low, split, count, unit_from = rounding.constants

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: RoundArguments = unpack(RoundArguments, arguments)
        rows, columns = unpack(StepWords, args.step).rows, args.columns
        if chunk < 0:
            return (rows + TOKENS_A_CHUNK - 1) // TOKENS_A_CHUNK
        for row in range(chunk * TOKENS_A_CHUNK, min(rows, chunk * TOKENS_A_CHUNK + TOKENS_A_CHUNK)):
            x = args.x + 4 * columns * row
            round_row(group, low, split, count, unit_from, row, rows, x, columns, args.rounded, args.sums)
        return 0

    return run
