"""The weights of attention themselves, for those who look at them: tiles of scores, and a softmax over each row.

They are written to memory, which `attention.py` never does; the arithmetic is the same, in `attention_tile.py`.
"""

from typing import Any

import numpy as np
from numba import njit

from kernels.cpu.arguments import AttentionWeightsArguments, StepWords
from kernels.cpu.attention import LOWEST, fetch, locate, multiply
from kernels.cpu.attention_memory import KEYS, LANES, PLACES_BYTES, ROWS
from kernels.cpu.attention_tile import find_peak, load_keys
from kernels.cpu.instructions import FLAGS, exp, floats, from_bits, integers, unpack, words
from kernels.cpu.operation import Function


def define_weights(stored: int, dim: int, block: int, plain: bool) -> Function:
    """Attention weights with heads of `dim`; `stored`, `block` and `plain` are as in `define_attend`.

    Each chunk of work is one head of up to `ROWS` rows, each of which is a query at a position of its own.

    Its arguments are `AttentionWeightsArguments`. The step has the rows' positions, and the cache blocks of the one
    sequence.
    """
    flag = int(plain)

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: AttentionWeightsArguments = unpack(AttentionWeightsArguments, arguments)
        step: StepWords = unpack(StepWords, args.step)
        tiles = (step.rows + ROWS - 1) // ROWS
        if chunk < 0:
            return tiles * args.chosen_count
        index, first = chunk // tiles, chunk % tiles * ROWS
        rows = min(ROWS, step.rows - first)
        head: Any = np.int64(integers(args.chosen, args.chosen_count)[index])
        kv_head: Any = head // (args.heads // args.kv_heads)
        positions = words(step.positions + 8 * first, rows)
        out = args.out + 4 * (index * step.rows + first) * args.width

        keys = scratch + PLACES_BYTES
        queries = keys + 4 * KEYS * dim
        scores = queries + 4 * rows * dim
        peaks = scores + 4 * rows * KEYS
        _begin(args, first, head, kv_head, dim, rows, queries, peaks)
        begin: Any = positions[0]
        end: Any = np.int64(0)
        for row in range(rows):
            begin, end = min(begin, positions[row]), max(end, positions[row] + 1)
        begin = 0 if args.window == 0 else max(0, begin - args.window + 1) // KEYS * KEYS
        table = integers(step.block_table, step.table_width)
        for base in range(begin, end, KEYS):
            present = min(KEYS, end - base)
            locate(stored, dim, block, args, table, base, end, kv_head, scratch)
            fetch(scratch, 0, KEYS, dim * stored)
            for j in range(0, present, LANES):
                load_keys(stored, dim, scratch + 8 * j, keys + 4 * j)
            vectors = (present + LANES - 1) // LANES
            multiply(rows, vectors, dim, queries, 4 * dim, keys, 4 * KEYS, scores, 4 * KEYS, peaks, 0)
            _write(flag, args, head, positions, base, present, rows, scores, peaks, out)
        for row in range(rows):
            _normalise(args, head, begin, end, floats(peaks, rows)[row], floats(out + 4 * row * args.width, args.width))
        return 0

    return run


@njit(inline="always", fastmath=FLAGS)
def _begin(
    args: AttentionWeightsArguments, first: int, head: int, kv_head: int, dim: int, rows: int, queries: int, peaks: int
) -> None:
    """Scale the queries of a head into `queries` [rows, dim], and begin the rows' peaks with their sinks."""
    scale = from_bits(np.int32(args.scale))
    if args.key_scales != 0:
        scale *= floats(args.key_scales, args.kv_heads)[kv_head]
    for row in range(rows):
        source = floats(args.queries + ((first + row) * args.heads + head) * dim * 4, dim)
        query = floats(queries + 4 * row * dim, dim)
        for d in range(dim):
            query[d] = source[d] * scale
        floats(peaks, rows)[row] = LOWEST if args.sinks == 0 else max(LOWEST, floats(args.sinks, args.heads)[head])


@njit(inline="always", fastmath=FLAGS)
def _write(
    plain: int,
    args: AttentionWeightsArguments,
    head: int,
    positions: Any,
    base: int,
    present: int,
    rows: int,
    scores: int,
    peaks: int,
    out: int,
) -> None:
    """Write the scores of a tile of keys to their rows of `out`, -inf for keys that are not seen; raise the peaks."""
    window, cap, slope = args.window, from_bits(np.int32(args.softcap)), np.float32(0)
    if args.slopes != 0:
        slope = floats(args.slopes, args.heads)[head]
    vectors = (present + LANES - 1) // LANES
    highest = floats(peaks, rows)
    for row in range(rows):
        seen = positions[row] - base + 1
        low = seen - window if window != 0 else 0
        at = scores + 4 * KEYS * row
        peak: Any = find_peak(plain, at, vectors, low, seen, highest[row], cap, slope, seen - 1)
        highest[row] = peak
        source, target = floats(at, KEYS), floats(out + 4 * (row * args.width + base), KEYS)
        for j in range(present):
            target[j] = source[j]


@njit(inline="always", fastmath=FLAGS)
def _normalise(args: AttentionWeightsArguments, head: int, begin: int, end: int, peak: Any, row: Any) -> None:
    """Turn a row's scores of keys `begin` to `end` - 1 into weights; all other keys get 0."""
    total = np.float32(0)
    if args.sinks != 0:
        total = exp(floats(args.sinks, args.heads)[head] - peak)
    for j in range(begin, end):
        row[j] = exp(row[j] - peak)
        total += row[j]
    factor = np.float32(1) / total
    for j in range(begin, end):
        row[j] *= factor
    for j in range(begin):
        row[j] = np.float32(0)
    for j in range(end, args.width):
        row[j] = np.float32(0)
