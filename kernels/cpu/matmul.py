"""A projection: activations are rounded to what the tile reads, then panels are multiplied, a few at a time."""

from functools import cache

import numpy as np

from kernels.cpu.instructions import (
    INFINITY,
    SIGNLESS,
    bits_of,
    floats,
    from_bits,
    shorts,
    signed_octets,
    words,
)
from kernels.cpu.operation import Operation, operation
from kernels.cpu.panels import LANES, Format
from kernels.cpu.target import dot_path
from kernels.cpu.tile import SUMS_BYTES, multiply_tile

CHUNK_BYTES = 12 * 1024
"""Of panels, in a chunk of work: they stay in a core's first cache while the tokens pass."""
ROUNDED = 8
"""Tokens in a chunk of rounding."""


@cache
def quantize_operation(group: int, split: bool) -> Operation:
    """Round activations in groups to integers of 16 bits, x = scale * code.

    Record: rows (address), x, codes, sums, columns, groups. x is [rows, columns] float32, in whole groups; codes are
    [rows, groups, group] int16, or if they are `split` [rows, groups, 2, group] int8: code = 256 * first + second;
    sums [rows, groups, 2] float32 are each group's scale, and the sum of its codes times that. A group with a NaN or
    an infinity has a NaN for its scale.
    """
    # Less than 2^15, so that the larger half of a split code is no more than 127.
    limit = np.float32(127 * 256 + 127)

    def run(record: int, chunk: int, scratch: int) -> int:
        r = words(record, 6)
        rows = words(r[0], 1)[0]
        if chunk < 0:
            return (rows + ROUNDED - 1) // ROUNDED
        columns, groups = r[4], r[5]
        for row in range(chunk * ROUNDED, min(rows, chunk * ROUNDED + ROUNDED)):
            x = floats(r[1] + row * columns * 4, columns)
            sums = floats(r[3] + row * groups * 8, groups * 2)
            for g in range(groups):
                at = r[2] + (row * groups + g) * group * 2
                codes, larger, smaller = shorts(at, group), signed_octets(at, group), signed_octets(at + group, group)
                first = g * group
                peak = np.int32(0)
                for i in range(group):
                    peak = max(peak, bits_of(x[first + i]) & SIGNLESS)
                scale = from_bits(peak) / limit if peak < INFINITY else np.float32(np.nan)
                inverse = np.float32(1) / scale if scale > np.float32(1e-38) else np.float32(0)
                total = np.int32(0)
                for i in range(group):
                    code = np.int32(np.rint(x[first + i] * inverse))
                    if split:
                        # The smaller half has a sign as well.
                        larger[i] = (code + np.int32(128)) >> np.int32(8)
                        smaller[i] = code - (((code + np.int32(128)) >> np.int32(8)) << np.int32(8))
                    else:
                        codes[i] = code
                    total += code
                sums[2 * g] = scale
                sums[2 * g + 1] = scale * np.float32(total)
        return 0

    return operation(run)


def _most_tokens(form: Format) -> int:
    """Tokens in a tile: what their accumulators leave of the registers must hold a group's weights."""
    return 8 if dot_path() == "avx512-vnni" or (dot_path() == "avx2" and form.bits == 4) else 4


@cache
def multiply_operation(form: Format) -> Operation:
    """Multiply panels of `form` with activations.

    Record: rows (address), x, sums, panels, bias (0: none), out, groups, outputs. x is [rows, groups, group] as the
    tile reads it; out is [rows, outputs] float32.
    """
    bits, group, offsets, most = form.bits, form.group, int(form.offsets), _most_tokens(form)
    group_bytes, group_input_bytes = form.group_bytes, form.group_input_bytes

    def run(record: int, chunk: int, scratch: int) -> int:
        r = words(record, 8)
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
