"""Causal attention over the paged cache, one block of keys at a time, with an online softmax.

Sources: online softmax, Milakov and Gimelshein, arXiv 1805.02867; blocks of keys, Dao et al., arXiv 2205.14135.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import njit

from kernels.cpu.elementwise import tanh
from kernels.cpu.instructions import FLAGS, exp, floats, from_bits, integers, words
from kernels.cpu.operation import Operation, operation
from kernels.cpu.storage import fetch

QUERIES = 16
"""Number of tokens of a sequence in a tile; their queries share each block that is read from the cache."""
LOWEST = np.float32(-3.0e38)
"""Initial peak of scores; unlike -inf, it leaves no NaN when it is subtracted from itself."""


@cache
def attend_operation(stored: int, dim: int, block: int, plain: bool) -> Operation:
    """Attention with heads of `dim` over a cache in blocks of `block` tokens; `stored` is their form (`storage.py`).

    A `plain` operation has neither soft cap nor ALiBi. Each chunk of work is one tile of `QUERIES` tokens for one KV
    head.

    Record: step, queries, heads, kv_heads, keys, values, key scales (0: none), value scales, scale (float32 bits),
    window (0: none), softcap (float32 bits; 0: none), ALiBi slopes (0: none), sinks (0: none), out. Queries and out are
    [tokens, heads, dim] float32; keys and values are [blocks, block, kv_heads, dim].
    """

    def run(record: int, chunk: int, scratch: int) -> int:
        r = words(record, 14)
        step, heads, kv_heads = words(r[0], 9), r[2], r[3]
        sequences = step[1]
        starts, contexts = integers(step[2], sequences + 1), integers(step[3], sequences)
        if chunk < 0:
            tiles = 0
            for sequence in range(sequences):
                tiles += (starts[sequence + 1] - starts[sequence] + QUERIES - 1) // QUERIES
            return tiles * kv_heads
        # A batch has its sequences with most tokens last; they are computed first.
        sequence, tile = sequences - 1, chunk // kv_heads
        while True:
            tiles = (starts[sequence + 1] - starts[sequence] + QUERIES - 1) // QUERIES
            if tile < tiles:
                break
            tile -= tiles
            sequence -= 1
        tile = tiles - 1 - tile
        kv_head, group = chunk % kv_heads, heads // kv_heads
        first = starts[sequence] + tile * QUERIES
        count = min(QUERIES, starts[sequence + 1] - first)
        context = contexts[sequence]
        # The position of the tile's first query.
        position = context - (starts[sequence + 1] - first)
        scale = from_bits(np.int32(r[8]))
        window, cap = r[9], from_bits(np.int32(r[10]))
        key_scale, value_scale = np.float32(1), np.float32(1)
        if r[6] != 0:
            key_scale, value_scale = floats(r[6], kv_heads)[kv_head], floats(r[7], kv_heads)[kv_head]
        rows = count * group
        keys = floats(scratch, block * dim)
        values = floats(scratch + block * dim * 4, block * dim)
        peaks = floats(scratch + 2 * block * dim * 4, rows)
        masses = floats(scratch + 2 * block * dim * 4 + rows * 4, rows)
        weights = floats(scratch + 2 * block * dim * 4 + rows * 8, block)
        for row in range(rows):
            head = kv_head * group + row % group
            peaks[row], masses[row] = LOWEST, np.float32(0)
            if r[12] != 0:
                peaks[row], masses[row] = floats(r[12], heads)[head], np.float32(1)
            out = floats(r[13] + ((first + row // group) * heads + head) * dim * 4, dim)
            for d in range(dim):
                out[d] = np.float32(0)
        table = integers(step[4] + sequence * step[5] * 4, step[5])
        begin = 0 if window == 0 else max(0, position - window + 1)
        for index in range(begin // block, (min(context, position + count) + block - 1) // block):
            at = table[index] * block
            base = index * block
            present = min(block, context - base)
            for j in range(present):
                token = ((at + j) * kv_heads + kv_head) * dim * stored
                fetch(stored, r[4] + token, keys[j * dim : j * dim + dim], dim, key_scale)
                fetch(stored, r[5] + token, values[j * dim : j * dim + dim], dim, value_scale)
            for row in range(rows):
                query_at = position + row // group
                low = 0 if window == 0 else max(0, query_at - window + 1 - base)
                high = min(present, query_at + 1 - base)
                if high <= low:
                    continue
                head = kv_head * group + row % group
                place = ((first + row // group) * heads + head) * dim * 4
                query, out = floats(r[1] + place, dim), floats(r[13] + place, dim)
                for j in range(low, high):
                    total = np.float32(0)
                    for d in range(dim):
                        total += query[d] * keys[j * dim + d]
                    weights[j] = total * scale
                if not plain:
                    if cap != 0:
                        for j in range(low, high):
                            weights[j] = cap * tanh(weights[j] / cap)
                    if r[11] != 0:
                        slope = floats(r[11], heads)[head]
                        for j in range(low, high):
                            weights[j] += slope * np.float32(base + j - query_at)
                peak = peaks[row]
                for j in range(low, high):
                    peak = max(peak, weights[j])
                mass = np.float32(0)
                for j in range(low, high):
                    weights[j] = exp(weights[j] - peak)
                    mass += weights[j]
                if peak != peaks[row]:
                    shrink = exp(peaks[row] - peak)
                    for d in range(dim):
                        out[d] *= shrink
                    masses[row] *= shrink
                    peaks[row] = peak
                masses[row] += mass
                _add_weighted(out, weights, values, low, high, dim)
        for row in range(rows):
            head = kv_head * group + row % group
            out = floats(r[13] + ((first + row // group) * heads + head) * dim * 4, dim)
            if masses[row] != 0:
                inverse = np.float32(1) / masses[row]
                for d in range(dim):
                    out[d] *= inverse
        return 0

    return operation(run)


@njit(inline="always", fastmath=FLAGS)
def _add_weighted(out: Any, weights: Any, values: Any, low: int, high: int, dim: int) -> None:
    """Add weights[low:high] times the rows low to high of `values` [block, dim] to `out` [dim].

    Four rows are added at a time, so that `out` is read and written a quarter as often.
    """
    j = low
    while j + 4 <= high:
        a, b, c, e = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        at = j * dim
        for d in range(dim):
            out[d] += (
                a * values[at + d]
                + b * values[at + dim + d]
                + c * values[at + 2 * dim + d]
                + e * values[at + 3 * dim + d]
            )
        j += 4
    while j < high:
        a = weights[j]
        for d in range(dim):
            out[d] += a * values[j * dim + d]
        j += 1
