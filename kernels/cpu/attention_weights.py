"""The weights of attention themselves, for those who look at them: tiles of scores, and a softmax over each row.

They are written to memory, which `attention.py` never does; the arithmetic is the same, in `attention_tile.py`.
"""

from typing import Any

import numpy as np
from numba import njit

from kernels.cpu.attention import LOWEST, fetch, locate, multiply
from kernels.cpu.attention_memory import KEYS, LANES, PLACES_BYTES, ROWS
from kernels.cpu.attention_tile import find_peak, load_keys
from kernels.cpu.instructions import FLAGS, exp, floats, from_bits, integers, words
from kernels.cpu.operation import Function


def define_weights(stored: int, dim: int, block: int, plain: bool) -> Function:
    """Attention weights with heads of `dim`; `stored`, `block` and `plain` are as in `attend_operation`.

    Each chunk of work is one head of up to `ROWS` rows, each of which is a query at a position of its own.

    Record: as in `attend_operation`, where out is [chosen heads, rows, width] float32, and behind it the chosen heads
    (int32), their number, and the width. The step has the rows' positions, and the cache blocks of the one sequence.
    """
    flag = int(plain)

    def run(arguments: int, chunk: int, scratch: int) -> int:
        r = words(arguments, 17)
        step = words(r[0], 9)
        tiles = (step[0] + ROWS - 1) // ROWS
        if chunk < 0:
            return tiles * r[15]
        index, first = chunk // tiles, chunk % tiles * ROWS
        rows = min(ROWS, step[0] - first)
        head: Any = np.int64(integers(r[14], r[15])[index])
        kv_head: Any = head // (r[2] // r[3])
        positions = words(step[7] + 8 * first, rows)
        out = r[13] + 4 * (index * step[0] + first) * r[16]

        keys = scratch + PLACES_BYTES
        queries = keys + 4 * KEYS * dim
        scores = queries + 4 * rows * dim
        peaks = scores + 4 * rows * KEYS
        _begin(r, first, head, kv_head, dim, rows, queries, peaks)
        begin: Any = positions[0]
        end: Any = np.int64(0)
        for row in range(rows):
            begin, end = min(begin, positions[row]), max(end, positions[row] + 1)
        begin = 0 if r[9] == 0 else max(0, begin - r[9] + 1) // KEYS * KEYS
        table = integers(step[4], step[5])
        for base in range(begin, end, KEYS):
            present = min(KEYS, end - base)
            locate(stored, dim, block, r, table, base, end, kv_head, scratch)
            fetch(scratch, 0, KEYS, dim * stored)
            for j in range(0, present, LANES):
                load_keys(stored, dim, scratch + 8 * j, keys + 4 * j)
            vectors = (present + LANES - 1) // LANES
            multiply(rows, vectors, dim, queries, 4 * dim, keys, 4 * KEYS, scores, 4 * KEYS, peaks, 0)
            _write(flag, r, head, positions, base, present, rows, scores, peaks, out)
        for row in range(rows):
            _normalise(r, head, begin, end, floats(peaks, rows)[row], floats(out + 4 * row * r[16], r[16]))
        return 0

    return run


@njit(inline="always", fastmath=FLAGS)
def _begin(r: Any, first: int, head: int, kv_head: int, dim: int, rows: int, queries: int, peaks: int) -> None:
    """Scale the queries of a head into `queries` [rows, dim], and begin the rows' peaks with their sinks."""
    scale = from_bits(np.int32(r[8]))
    if r[6] != 0:
        scale *= floats(r[6], r[3])[kv_head]
    for row in range(rows):
        source = floats(r[1] + ((first + row) * r[2] + head) * dim * 4, dim)
        query = floats(queries + 4 * row * dim, dim)
        for d in range(dim):
            query[d] = source[d] * scale
        floats(peaks, rows)[row] = LOWEST if r[12] == 0 else max(LOWEST, floats(r[12], r[2])[head])


@njit(inline="always", fastmath=FLAGS)
def _write(
    plain: int, r: Any, head: int, positions: Any, base: int, present: int, rows: int, scores: int, peaks: int, out: int
) -> None:
    """Write the scores of a tile of keys to their rows of `out`, -inf for keys that are not seen; raise the peaks."""
    window, cap, slope = r[9], from_bits(np.int32(r[10])), np.float32(0)
    if r[11] != 0:
        slope = floats(r[11], r[2])[head]
    vectors = (present + LANES - 1) // LANES
    highest = floats(peaks, rows)
    for row in range(rows):
        seen = positions[row] - base + 1
        low = seen - window if window != 0 else 0
        at = scores + 4 * KEYS * row
        peak: Any = find_peak(plain, at, vectors, low, seen, highest[row], cap, slope, seen - 1)
        highest[row] = peak
        source, target = floats(at, KEYS), floats(out + 4 * (row * r[16] + base), KEYS)
        for j in range(present):
            target[j] = source[j]


@njit(inline="always", fastmath=FLAGS)
def _normalise(r: Any, head: int, begin: int, end: int, peak: Any, row: Any) -> None:
    """Turn a row's scores of keys `begin` to `end` - 1 into weights; all other keys get 0."""
    total = np.float32(0)
    if r[12] != 0:
        total = exp(floats(r[12], r[2])[head] - peak)
    for j in range(begin, end):
        row[j] = exp(row[j] - peak)
        total += row[j]
    factor = np.float32(1) / total
    for j in range(begin, end):
        row[j] *= factor
    for j in range(begin):
        row[j] = np.float32(0)
    for j in range(end, r[16]):
        row[j] = np.float32(0)
