"""Activations rounded for a product with weights of few bits: to integer codes in groups, or to bfloat16 numbers."""

from numba import njit

from kernels.cpu.activations import DEPTH, SUMS_BYTES, TOKENS, Rounding
from kernels.cpu.instructions import words
from kernels.cpu.matrix_tile import round_inputs
from kernels.cpu.operation import Function
from kernels.cpu.target import REGISTER_BYTES
from kernels.cpu.tile import quantize_group

TOKENS_A_CHUNK = 8
"""Number of tokens in a chunk of work."""


@njit(inline="always")
def round_row(
    group: int,
    low: int,
    split: int,
    count: int,
    unit: int,
    row: int,
    x: int,
    columns: int,
    rounded: int,
    sums: int,
) -> None:
    """Round a token, whose activations [columns] float32 are at x; the first five arguments are `constants`."""
    if unit:
        tile = rounded + row // TOKENS * (columns // DEPTH) * count * REGISTER_BYTES
        for step in range(columns // DEPTH):
            round_inputs(count, x + 4 * DEPTH * step, tile + step * count * REGISTER_BYTES + row % TOKENS * 2 * DEPTH)
    else:
        groups = columns // group
        for g in range(groups):
            at = (row // TOKENS * groups + g) * TOKENS + row % TOKENS
            quantize_group(group, low, split, x + 4 * g * group, rounded + at * group * 2, sums + at * SUMS_BYTES)


def define_round(rounding: Rounding) -> Function:
    """Round activations.

    Record: rows, x, columns, rounded, sums. x is [rows, columns] float32, and columns are whole groups.
    """
    group, low, split, count, unit = rounding.constants

    def run(arguments: int, chunk: int, scratch: int) -> int:
        r = words(arguments, 5)
        rows, columns = words(r[0], 1)[0], r[2]
        if chunk < 0:
            return (rows + TOKENS_A_CHUNK - 1) // TOKENS_A_CHUNK
        for row in range(chunk * TOKENS_A_CHUNK, min(rows, chunk * TOKENS_A_CHUNK + TOKENS_A_CHUNK)):
            x = r[1] + 4 * columns * row
            round_row(group, low, split, count, unit, row, x, columns, r[3], r[4])
        return 0

    return run
