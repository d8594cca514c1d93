"""A projection in two operations: activations are quantised, then multiplied with panels of the weight."""

from functools import cache

from numba import njit

from kernels.cpu.instructions import floats, words
from kernels.cpu.matrix_tile import (
    MOST_ROWS,
    TOKENS,
    TOTALS,
    configure,
    inputs_at_once,
    multiply_matrix_panel,
    release,
    serves,
)
from kernels.cpu.operation import Operation, operation
from kernels.cpu.panels import LANES, Format
from kernels.cpu.target import dot_path
from kernels.cpu.tile import LOW_BITS, SUMS_BYTES, multiply_tile, quantize_group

CHUNK_BYTES = 12 * 1024
"""Bytes of panels in a chunk of work, few enough to stay in a core's first-level cache while all tokens use them."""
ROUNDED = 8
"""Number of tokens in a chunk of quantising."""


NEVER = 1 << 40


def _least_rows(form: Format) -> int:
    """Number of tokens from which on the matrix unit multiplies."""
    return TOKENS if serves(form) else NEVER


@cache
def quantize_operation(form: Format) -> Operation:
    """Quantise activations in groups to integer codes, as `quantize_group` does, for weights of `form`.

    Record: rows, x, codes, sums, columns, groups. x is [rows, columns] float32, and columns are whole groups. codes are
    [rows, groups, group] int16, or [rows, groups, 2, group] int8 for 4-bit weights and for the matrix unit; sums are
    [rows, groups, 2] float32.
    """
    group, low, split, least = form.group, LOW_BITS[form.bits], form.bits == 4, _least_rows(form)

    def run(arguments: int, chunk: int, scratch: int) -> int:
        r = words(arguments, 6)
        rows = words(r[0], 1)[0]
        if chunk < 0:
            return (rows + ROUNDED - 1) // ROUNDED
        columns, groups = r[4], r[5]
        for row in range(chunk * ROUNDED, min(rows, chunk * ROUNDED + ROUNDED)):
            for g in range(groups):
                at = row * groups + g
                x = r[1] + (row * columns + g * group) * 4
                if split or rows >= least:
                    quantize_group(group, low, 1, x, r[2] + at * group * 2, r[3] + at * SUMS_BYTES)
                else:
                    quantize_group(group, low, 0, x, r[2] + at * group * 2, r[3] + at * SUMS_BYTES)
        return 0

    return operation(run)


def _most_tokens(form: Format) -> int:
    """Limit of tokens in a tile: their accumulators must leave enough registers for a group's weights."""
    return 8 if dot_path() == "avx512-vnni" or (dot_path() == "avx2" and form.bits == 4) else 4


@cache
def multiply_operation(form: Format) -> Operation:
    """Multiply activations with a weight in panels of `form`, and add a bias.

    Record: rows, x, sums, panels, bias (0: none), out, groups, outputs. x and sums are those of `quantize_operation`,
    or x is [rows, groups, group] float32 if weights have more than 8 bits; bias is [outputs] float32, and out is
    [rows, outputs] float32.
    """
    bits, group, offsets, most = form.bits, form.group, int(form.offsets), _most_tokens(form)
    least, at_once = _least_rows(form), inputs_at_once(form)
    group_bytes, group_input_bytes = form.group_bytes, form.group_input_bytes

    def run(arguments: int, chunk: int, scratch: int) -> int:
        r = words(arguments, 8)
        rows, groups, outputs = words(r[0], 1)[0], r[6], r[7]
        panels = (outputs + LANES - 1) // LANES
        share = max(1, CHUNK_BYTES // (groups * group_bytes))
        if chunk < 0:
            return (panels + share - 1) // share
        x_stride = groups * group_input_bytes
        sums_stride = groups * SUMS_BYTES
        first, last = chunk * share, min(panels, chunk * share + share)
        if rows >= least:
            configure(scratch, at_once)
            row = 0
            while row < rows:
                # Fewer than TOKENS that are left are computed with some of those before them again.
                row = min(row, rows - TOKENS)
                count = min(rows - row, MOST_ROWS)
                x, sums = r[1] + row * x_stride, r[2] + row * sums_stride
                for index in range(first, last):
                    panel = r[3] + index * groups * group_bytes
                    multiply_matrix_panel(
                        bits, group, offsets, panel, x, x_stride, sums, sums_stride, groups, count, scratch
                    )
                    for tile in range(0, count, TOKENS):
                        begin = min(tile, count - TOKENS)
                        _write(scratch + TOTALS + tile * LANES * 4, TOKENS, row + begin, index, outputs, r[4], r[5])
                row += count
            release(0)
            return 0
        row = 0
        while row < rows:
            x, sums = r[1] + row * x_stride, r[2] + row * sums_stride
            count = most if rows - row >= most else min(4, rows - row)
            for index in range(first, last):
                panel = r[3] + index * groups * group_bytes
                if count == 8:
                    multiply_tile(
                        bits, group, offsets, 8, panel, x, x_stride, sums, sums_stride, groups, scratch, LANES * 4
                    )
                elif count == 4:
                    multiply_tile(
                        bits, group, offsets, 4, panel, x, x_stride, sums, sums_stride, groups, scratch, LANES * 4
                    )
                elif count == 3:
                    multiply_tile(
                        bits, group, offsets, 3, panel, x, x_stride, sums, sums_stride, groups, scratch, LANES * 4
                    )
                elif count == 2:
                    multiply_tile(
                        bits, group, offsets, 2, panel, x, x_stride, sums, sums_stride, groups, scratch, LANES * 4
                    )
                else:
                    multiply_tile(
                        bits, group, offsets, 1, panel, x, x_stride, sums, sums_stride, groups, scratch, LANES * 4
                    )
                _write(scratch, count, row, index, outputs, r[4], r[5])
            row += count
        return 0

    return operation(run)


@njit(inline="always")
def _write(totals: int, count: int, row: int, panel: int, outputs: int, bias: int, out: int) -> None:
    """Write `totals`, [count, LANES] float32, of the tokens from `row` on and a panel to `out`, and add the bias."""
    many = min(LANES, outputs - panel * LANES)
    for t in range(count):
        done = floats(totals + t * LANES * 4, LANES)
        place = floats(out + ((row + t) * outputs + panel * LANES) * 4, LANES)
        if bias != 0:
            added = floats(bias + panel * LANES * 4, LANES)
            for i in range(many):
                place[i] = done[i] + added[i]
        elif many == LANES:
            for i in range(LANES):
                place[i] = done[i]
        else:
            for i in range(many):
                place[i] = done[i]
