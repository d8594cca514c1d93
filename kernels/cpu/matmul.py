"""A projection in two operations: activations are quantised, then multiplied with panels of the weight."""

from functools import cache

from kernels.cpu.instructions import floats, words
from kernels.cpu.matrix_tile import SCRATCH, TOKENS, configure, multiply_matrix_tile, release
from kernels.cpu.operation import Operation, operation
from kernels.cpu.panels import LANES, Format
from kernels.cpu.target import dot_path, matrix_unit
from kernels.cpu.tile import SUMS_BYTES, multiply_tile, quantize_group

CHUNK_BYTES = 12 * 1024
"""Bytes of panels in a chunk of work, few enough to stay in a core's first-level cache while all tokens use them."""
ROUNDED = 8
"""Number of tokens in a chunk of quantising."""


NEVER = 1 << 40


def _least_rows(form: Format) -> int:
    """Number of tokens from which on the matrix unit multiplies."""
    fits = form.bits <= 8 and form.group % 4 == 0
    return TOKENS if matrix_unit() and fits else NEVER


@cache
def quantize_operation(form: Format) -> Operation:
    """Quantise activations in groups to 16-bit codes, as `quantize_group` does, for weights of `form`.

    Record: rows, x, codes, sums, columns, groups. x is [rows, columns] float32, and columns are whole groups. codes are
    [rows, groups, group] int16, or [rows, groups, 2, group] int8 for 4-bit weights and for the matrix unit; sums are
    [rows, groups, 2] float32.
    """
    group, split, least = form.group, form.bits == 4, _least_rows(form)

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
                    quantize_group(group, 1, x, r[2] + at * group * 2, r[3] + at * SUMS_BYTES)
                else:
                    quantize_group(group, 0, x, r[2] + at * group * 2, r[3] + at * SUMS_BYTES)
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
        row = 0
        while row < rows:
            x, sums = r[1] + row * x_stride, r[2] + row * sums_stride
            count = most if rows - row >= most else min(4, rows - row)
            for index in range(first, last):
                panel = r[3] + index * groups * group_bytes
                out, out_stride = r[5] + (row * outputs + index * LANES) * 4, outputs * 4
                short = outputs - index * LANES
                if short < LANES:
                    out, out_stride = scratch, LANES * 4
                if count == 8:
                    multiply_tile(
                        bits, group, offsets, 8, panel, x, x_stride, sums, sums_stride, groups, out, out_stride
                    )
                elif count == 4:
                    multiply_tile(
                        bits, group, offsets, 4, panel, x, x_stride, sums, sums_stride, groups, out, out_stride
                    )
                elif count == 3:
                    multiply_tile(
                        bits, group, offsets, 3, panel, x, x_stride, sums, sums_stride, groups, out, out_stride
                    )
                elif count == 2:
                    multiply_tile(
                        bits, group, offsets, 2, panel, x, x_stride, sums, sums_stride, groups, out, out_stride
                    )
                else:
                    multiply_tile(
                        bits, group, offsets, 1, panel, x, x_stride, sums, sums_stride, groups, out, out_stride
                    )
                if short < LANES:
                    for t in range(count):
                        done = floats(scratch + t * LANES * 4, LANES)
                        wanted = floats(r[5] + ((row + t) * outputs + index * LANES) * 4, short)
                        for i in range(short):
                            wanted[i] = done[i]
                if r[4] != 0:
                    many = min(LANES, short)
                    bias = floats(r[4] + index * LANES * 4, many)
                    for t in range(count):
                        wanted = floats(r[5] + ((row + t) * outputs + index * LANES) * 4, many)
                        for i in range(many):
                            wanted[i] += bias[i]
            row += count
        return 0

    return operation(run)
