"""A projection: activations are rounded to what the tile reads, then panels are multiplied, a few at a time."""

from functools import cache

import numpy as np

from kernels.cpu.instructions import bits_of, floats, from_bits, shorts, signed_octets, words
from kernels.cpu.operation import Operation, operation
from kernels.cpu.panels import LANES, Format
from kernels.cpu.tile import multiply_tile

CHUNK_BYTES = 12 * 1024
"""Of panels, in a chunk of work: they stay in a core's first cache while the tokens pass."""
ROWS = 4
"""Tokens in a tile: more accumulators, and the weights' unpacking would not have enough registers."""


@cache
def quantize_operation(bits: int, group: int) -> Operation:
    """Round activations in groups to integers of `bits` (8 or 16), each group by a scale of its own.

    Record: rows (address), x, codes, sums, columns, groups. x is [rows, columns] float32; codes are [rows, groups *
    group]; sums [rows, groups, 2] float32 are each group's scale, and the sum of its codes times that. A group with
    a NaN or an infinity comes out as NaN.
    """
    limit = np.float32(127 if bits == 8 else 32767)
    code_bytes = bits // 8

    def run(record: int, chunk: int, scratch: int) -> int:
        r = words(record, 6)
        rows = words(r[0], 1)[0]
        if chunk < 0:
            return (rows + 7) // 8
        columns, groups = r[4], r[5]
        for row in range(chunk * 8, min(rows, chunk * 8 + 8)):
            x = floats(r[1] + row * columns * 4, columns)
            sums = floats(r[3] + row * groups * 8, groups * 2)
            start = r[2] + row * groups * group * code_bytes
            for g in range(groups):
                first = g * group
                count = min(group, columns - first)
                peak = np.int32(0)
                # As integers, floats without their sign have the same order, and a NaN comes last.
                for i in range(count):
                    peak = max(peak, bits_of(x[first + i]) & np.int32(0x7FFFFFFF))
                scale = from_bits(peak) / limit
                inverse = np.float32(1) / scale if scale > np.float32(1e-38) else np.float32(0)
                total = np.int32(0)
                if code_bytes == 1:
                    codes8 = signed_octets(start + first, group)
                    for i in range(count):
                        code = np.int32(np.rint(x[first + i] * inverse))
                        codes8[i] = code
                        total += code
                    for i in range(count, group):
                        codes8[i] = 0
                else:
                    codes16 = shorts(start + first * 2, group)
                    for i in range(count):
                        code = np.int32(np.rint(x[first + i] * inverse))
                        codes16[i] = code
                        total += code
                    for i in range(count, group):
                        codes16[i] = 0
                sums[2 * g] = scale
                sums[2 * g + 1] = scale * np.float32(total)
        return 0

    return operation(run)


@cache
def multiply_operation(form: Format) -> Operation:
    """Multiply panels of `form` with activations.

    Record: rows (address), x, sums, panels, bias (0: none), out, groups, outputs. x is [rows, groups, group] as the
    tile reads it; out is [rows, outputs] float32.
    """
    bits, group, offsets = form.bits, form.group, int(form.offsets)
    group_bytes, group_input_bytes = form.group_bytes, form.group_input_bytes

    def run(record: int, chunk: int, scratch: int) -> int:
        r = words(record, 8)
        rows, groups, outputs = words(r[0], 1)[0], r[6], r[7]
        panels = (outputs + LANES - 1) // LANES
        share = max(1, CHUNK_BYTES // (groups * group_bytes))
        if chunk < 0:
            return (panels + share - 1) // share
        x_stride = groups * group_input_bytes
        sums_stride = groups * 8
        first, last = chunk * share, min(panels, chunk * share + share)
        row = 0
        while row < rows:
            x, sums = r[1] + row * x_stride, r[2] + row * sums_stride
            count = min(ROWS, rows - row)
            for index in range(first, last):
                panel = r[3] + index * groups * group_bytes
                out, out_stride = r[5] + (row * outputs + index * LANES) * 4, outputs * 4
                short = outputs - index * LANES
                if short < LANES:
                    out, out_stride = scratch, LANES * 4
                if count == 4:
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
