"""Causal attention over the paged cache, one tile of keys at a time, with an online softmax.

Sources: online softmax, Milakov and Gimelshein, arXiv 1805.02867; tiles of keys, Dao et al., arXiv 2205.14135. The
arithmetic stands in `attention_tile.py`.
"""

from typing import Any

import numpy as np
from numba import njit

from kernels.cpu.arguments import AttendArguments, AttentionWeightsArguments, StepWords
from kernels.cpu.attention_by_unit import take_by_unit
from kernels.cpu.attention_memory import KEYS, LANES, PLACES_BYTES, ROWS, serves
from kernels.cpu.attention_state import advance, padded_rows, state_bytes, state_of
from kernels.cpu.attention_tile import (
    ROWS_AT_ONCE,
    VECTORS_AT_ONCE,
    find_peak,
    load_keys,
    load_value,
    multiply_rows,
    take_exp,
)
from kernels.cpu.instructions import FLAGS, floats, from_bits, integers, prefetch, unpack, words
from kernels.cpu.operation import Function

UNIT_ROWS = 48
"""Rows in a tile where the matrix unit multiplies: fewer than `ROWS`, since sharing keys saves the unit less time."""
LOWEST = np.float32(-3.0e38)
"""Initial peak of scores; unlike -inf, it leaves no NaN when it is subtracted from itself."""
SEQUENCES_A_THREAD = 4
"""With at least this many sequences for each thread, one chunk computes several KV heads of a decoding token.

Memory is then read in its order, which is faster; with fewer sequences there would be too few chunks for all threads.
"""
MOST_ROWS, MOST_VECTORS = ROWS_AT_ONCE[0], VECTORS_AT_ONCE[0]


def define_attend(stored: int, dim: int, block: int, plain: bool) -> Function:
    """Attention with heads of `dim` over a cache in blocks of `block` tokens; `stored` is their form (`storage.py`).

    A `plain` operation has neither soft cap nor ALiBi. Each chunk of work is the tokens of one tile for one KV head, or
    a decoding sequence's one token for several KV heads, whose keys and values lie side by side in memory.

    Its arguments are `AttendArguments`.

    A row's sums have one order, whatever its batch: tiles of keys begin at multiples of `KEYS`, and keys that a row
    does not see have the weight 0.
    """
    width = -(-dim // LANES) * LANES
    flag, unit = int(plain), serves(stored, dim, block)
    most = UNIT_ROWS if unit else ROWS

    @njit(inline="always")
    def take_keys(
        args: AttendArguments,
        table: Any,
        begin: int,
        end: int,
        position: int,
        kv_head: int,
        many: int,
        rows: Any,
        states: int,
        memory: int,
        scratch: int,
    ) -> None:
        """Add the keys from `begin` to `end` and their values to the states of `many` KV heads from `kv_head` on.

        `position` is that of the first row's token. The memory at `memory` and at `scratch` is for this alone.
        """
        padded, lanes = padded_rows(rows), width // LANES
        places, coming = scratch, scratch + PLACES_BYTES
        scores, keys = memory, memory + 4 * padded * KEYS
        values = keys + 4 * KEYS * dim
        if begin < end:
            locate(stored, dim, block, args, table, begin, end, kv_head, places)
            fetch(places, 0, KEYS, many * dim * stored)
        for base in range(begin, end, KEYS):
            present = min(KEYS, end - base)
            vectors = (present + LANES - 1) // LANES
            if base + KEYS < end:
                locate(stored, dim, block, args, table, base + KEYS, end, kv_head, coming)
            for head in range(many):
                if base + KEYS < end:
                    fetch(coming, KEYS * head // many, KEYS * (head + 1) // many, many * dim * stored)
                peaks, masses, shrinks, queries, sums = state_of(states, head, padded, dim, width)
                _load(stored, dim, width, present, places, keys, values)
                multiply(rows, vectors, dim, queries, 4 * dim, keys, 4 * KEYS, scores, 4 * KEYS, shrinks, 0)
                _find_peaks(flag, args, kv_head + head, position - base, rows, vectors, scores, peaks, shrinks)
                _take_exps(rows, vectors, scores, peaks, masses, shrinks)
                multiply(rows, lanes, present, scores, 4 * KEYS, values, 4 * width, sums, 4 * width, shrinks, 1)
                advance(places, 2 * KEYS, dim * stored)
            places, coming = coming, places

    take = take_by_unit(stored, dim, block, plain) if unit else take_keys

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: AttendArguments = unpack(AttendArguments, arguments)
        step: StepWords = unpack(StepWords, args.step)
        kv_heads, group = args.kv_heads, args.heads // args.kv_heads
        starts, contexts = integers(step.query_starts, step.sequences + 1), integers(step.context_lens, step.sequences)
        tokens, together = max(1, most // group), 1
        if step.sequences >= SEQUENCES_A_THREAD * args.threads:
            together = max(1, min(kv_heads, most // padded_rows(group)))
        if chunk < 0:
            return _count_chunks(starts, step.sequences, tokens, kv_heads, together)
        sequence, first, kv_head, many = _find_chunk(starts, step.sequences, tokens, kv_heads, together, chunk)
        rows = min(tokens, starts[sequence + 1] - first) * group
        # The position of the tile's first token, and the end of what its last one sees.
        position = contexts[sequence] - (starts[sequence + 1] - first)
        end = min(contexts[sequence], position + rows // group)

        padded = padded_rows(rows)
        states = scratch + 2 * PLACES_BYTES
        memory = states + many * state_bytes(padded, dim, width)
        for head in range(many):
            peaks, masses, _, queries, sums = state_of(states, head, padded, dim, width)
            _begin(args, first, kv_head + head, dim, width, rows, queries, sums, peaks, masses)
        table = integers(step.block_table + sequence * step.table_width * 4, step.table_width)
        begin = 0 if args.window == 0 else max(0, position - args.window + 1) // KEYS * KEYS
        take(args, table, begin, end, position, kv_head, many, rows, states, memory, scratch)
        for head in range(many):
            _, masses, _, _, sums = state_of(states, head, padded, dim, width)
            _end(args, first, kv_head + head, dim, width, rows, sums, masses)
        return 0

    return run


@njit(inline="always")
def _chunks_of(starts: Any, sequence: int, tokens: int, kv_heads: int, together: int) -> int:
    """The number of a sequence's chunks: `together` heads for one token, or a head for up to `tokens` tokens."""
    new = starts[sequence + 1] - starts[sequence]
    if new == 1:
        return (kv_heads + together - 1) // together
    return (new + tokens - 1) // tokens * kv_heads


@njit(inline="always")
def _count_chunks(starts: Any, sequences: int, tokens: int, kv_heads: int, together: int) -> int:
    """The number of all sequences' chunks."""
    chunks = 0
    for sequence in range(sequences):
        chunks += _chunks_of(starts, sequence, tokens, kv_heads, together)
    return chunks


@njit(inline="always")
def _find_chunk(starts: Any, sequences: int, tokens: int, kv_heads: int, together: int, index: int) -> Any:
    """The sequence of a chunk, its first token in the batch, its first KV head, and its number of KV heads.

    Chunks have the order of tokens, so that a thread attends with the queries that it has made itself (`program.py`).
    """
    sequence = 0
    while True:
        chunks = _chunks_of(starts, sequence, tokens, kv_heads, together)
        if index < chunks:
            break
        index -= chunks
        sequence += 1
    tile, kv_head, many = index // kv_heads, index % kv_heads, 1
    if starts[sequence + 1] - starts[sequence] == 1:
        tile, kv_head = 0, index * together
        many = min(together, kv_heads - kv_head)
    return sequence, starts[sequence] + tile * tokens, kv_head, many


@njit(inline="always", fastmath=FLAGS)
def _begin(
    args: AttendArguments,
    first: int,
    kv_head: int,
    dim: int,
    width: int,
    rows: int,
    queries: int,
    sums: int,
    peaks: int,
    masses: int,
) -> None:
    """Scale the tile's queries into `queries` [rows, dim], and begin its sums [rows, width], peaks and masses."""
    heads, group = args.heads, args.heads // args.kv_heads
    scale = from_bits(np.int32(args.scale))
    if args.key_scales != 0:
        scale *= floats(args.key_scales, args.kv_heads)[kv_head]
    for row in range(rows):
        head = kv_head * group + row % group
        source = floats(args.queries + ((first + row // group) * heads + head) * dim * 4, dim)
        query, total = floats(queries + 4 * row * dim, dim), floats(sums + 4 * row * width, width)
        for d in range(dim):
            query[d] = source[d] * scale
        for d in range(width):
            total[d] = np.float32(0)
        floats(peaks, rows)[row], floats(masses, rows)[row] = LOWEST, np.float32(0)
        if args.sinks != 0:
            floats(peaks, rows)[row], floats(masses, rows)[row] = (
                max(LOWEST, floats(args.sinks, heads)[head]),
                np.float32(1),
            )


@njit(inline="always")
def locate(
    stored: int,
    dim: int,
    block: int,
    args: AttendArguments | AttentionWeightsArguments,
    table: Any,
    base: int,
    end: int,
    kv_head: int,
    places: int,
) -> None:
    """Write the addresses of a tile's keys and values to `places`, [2, KEYS] int64.

    Behind the sequence's end, its last key is repeated.
    """
    keys, values = words(places, KEYS), words(places + 8 * KEYS, KEYS)
    for j in range(KEYS):
        at = min(base + j, end - 1)
        offset = ((table[at // block] * block + at % block) * args.kv_heads + kv_head) * dim * stored
        keys[j], values[j] = args.keys + offset, args.values + offset


@njit(inline="always")
def fetch(places: int, first: int, last: int, size: int) -> None:
    """Begin to fetch `size` bytes of each of a tile's keys and values from `first` to `last` - 1."""
    for part in range(2):
        found = words(places + 8 * KEYS * part, KEYS)
        for j in range(first, last):
            for line in range(0, size, 64):
                prefetch(found[j] + line)


@njit(inline="always")
def _load(stored: int, dim: int, width: int, present: int, places: int, keys: int, values: int) -> None:
    """Write a tile's keys to `keys`, [dim, KEYS] float32, and its values to `values`, [KEYS, width] float32."""
    for j in range(0, present, LANES):
        load_keys(stored, dim, places + 8 * j, keys + 4 * j)
    for j in range(present):
        load_value(stored, dim, words(places + 8 * KEYS, KEYS)[j], values + 4 * j * width)


@njit(inline="always", fastmath=FLAGS)
def _find_peaks(
    plain: int,
    args: AttendArguments,
    kv_head: int,
    position: int,
    rows: int,
    vectors: int,
    scores: int,
    peaks: int,
    shrinks: int,
) -> None:
    """Hide what rows do not see in their scores [rows, KEYS], and raise the peaks; `shrinks` how far, as a negative.

    `position` is that of the first row's token, counted from the tile's first key.
    """
    group, window, cap, slope = (
        args.heads // args.kv_heads,
        args.window,
        from_bits(np.int32(args.softcap)),
        np.float32(0),
    )
    before, changes = floats(peaks, rows), floats(shrinks, rows)
    for token in range(rows // group):
        seen = position + token + 1
        low = seen - window if window != 0 else 0
        for head in range(group):
            row = token * group + head
            if args.slopes != 0:
                slope = floats(args.slopes, args.heads)[kv_head * group + head]
            peak: Any = find_peak(plain, scores + 4 * KEYS * row, vectors, low, seen, before[row], cap, slope, seen - 1)
            changes[row] = before[row] - peak
            before[row] = peak


@njit(inline="always", fastmath=FLAGS)
def _take_exps(rows: int, vectors: int, scores: int, peaks: int, masses: int, shrinks: int) -> None:
    """Scores become weights, e^(score - peak); `shrinks` become the factors of earlier masses and sums; masses grow."""
    take_exp(shrinks, (rows + LANES - 1) // LANES, np.float32(0))
    highest, totals, factors = floats(peaks, rows), floats(masses, rows), floats(shrinks, rows)
    for row in range(rows):
        added = take_exp(scores + 4 * KEYS * row, vectors, highest[row])
        totals[row] = totals[row] * factors[row] + added


@njit
def multiply(
    rows: int,
    vectors: int,
    depth: int,
    a: int,
    a_stride: int,
    b: int,
    b_stride: int,
    c: int,
    c_stride: int,
    shrinks: int,
    started: int,
) -> None:
    """`multiply_rows` for any number of rows and vectors."""
    column = 0
    while column < vectors:
        many = MOST_VECTORS if vectors - column >= MOST_VECTORS else 1
        row = 0
        while row < rows:
            count = MOST_ROWS if rows - row >= MOST_ROWS else min(4, rows - row)
            multiply_rows(
                *(count, many, depth, a + row * a_stride, a_stride, b + 4 * LANES * column, b_stride),
                *(c + row * c_stride + 4 * LANES * column, c_stride, shrinks + 4 * row, started),
            )
            row += count
        column += many


@njit(inline="always", fastmath=FLAGS)
def _end(
    args: AttendArguments, first: int, kv_head: int, dim: int, width: int, rows: int, sums: int, masses: int
) -> None:
    """Divide the tile's sums by their masses, and write them to their rows of out."""
    heads, group = args.heads, args.heads // args.kv_heads
    scale = np.float32(1)
    if args.value_scales != 0:
        scale = floats(args.value_scales, args.kv_heads)[kv_head]
    for row in range(rows):
        out = floats(args.out + ((first + row // group) * heads + kv_head * group + row % group) * dim * 4, dim)
        total, mass = floats(sums + 4 * row * width, width), floats(masses, rows)[row]
        factor = scale / mass if mass != 0 else np.float32(0)
        for d in range(dim):
            out[d] = total[d] * factor
