"""The walk of attention over a sequence's keys where the matrix unit multiplies, one tile of keys at a time.

Its products stand in `matrix_attention.py`, and its softmax in `matrix_softmax.py`.
"""

from typing import Any

import numpy as np
from numba import njit

from kernels.cpu.arguments import AttendArguments
from kernels.cpu.attention_memory import DEPTH, KEYS, PARTS, PRODUCT_BYTES, STEPS, unit_bytes
from kernels.cpu.attention_state import advance, bounds_of, padded_rows, state_of
from kernels.cpu.instructions import FLAGS, floats, from_bits, integers
from kernels.cpu.matrix_attention import (
    add_tile,
    begin_tile,
    begin_unit,
    columns_of,
    locate_parts,
    products_of,
    score_tile,
    weights_of,
)
from kernels.cpu.matrix_softmax import soften
from kernels.cpu.matrix_unit import release
from kernels.cpu.target import REGISTER_ROWS


def take_by_unit(stored: int, dim: int, block: int, plain: bool) -> Any:
    """A function for kernels that adds keys and values to states; the constants are as in `define_attend`."""
    flag, own_bytes = int(plain), unit_bytes(dim, REGISTER_ROWS)

    @njit(inline="always")
    def take_keys(
        args: AttendArguments,
        table: Any,
        begin: int,
        end: int,
        position: int,
        kv_head: int,
        many: int,
        rows: int,
        states: int,
        own: int,
        scratch: int,
    ) -> None:
        """Do what `take_keys` of `attention.py` does; the memory at `own` has a part for each head.

        All heads have their scores before any has its weights, so that the CPU computes for one head while another
        waits for memory. Nothing is fetched ahead, since the CPU does this by itself.
        """
        padded, stride, places = padded_rows(rows), args.kv_heads * dim * stored, scratch
        cap, tokens = from_bits(np.int32(args.softcap)), rows // (args.heads // args.kv_heads)
        # Positions from which on a key may be hidden from the first row, and up to which from the last.
        first, last = position + 1, position + tokens - args.window if args.window != 0 else 0
        begin_unit(rows, own)
        for head in range(many):
            _, _, _, queries, _ = state_of(states, head, padded, dim, dim)
            begin_tile(dim, rows, queries, own + head * own_bytes)
            _bound(args, position, kv_head + head, rows, padded, bounds_of(states, head, padded, dim, dim))
        for base in range(begin, end, KEYS):
            present = min(KEYS, end - base)
            steps = (present + DEPTH - 1) // DEPTH
            hides = int(base + steps * DEPTH > first or base < last)
            locate_parts(dim, block, args, table, base, end, kv_head, places)
            for head in range(many):
                score_tile(dim, rows, steps, places, stride, own + head * own_bytes)
                advance(places, PARTS, dim * stored)
            for head in range(many):
                peaks, _, _, _, _ = state_of(states, head, padded, dim, dim)
                bounds, mine = bounds_of(states, head, padded, dim, dim), own + head * own_bytes
                products, weights = products_of(dim, rows, mine), weights_of(dim, rows, mine)
                for row in range(0, rows, REGISTER_ROWS):
                    # fmt: off
                    soften(
                        flag, columns_of(rows), products + PRODUCT_BYTES * row, steps, base, hides, cap,
                        bounds + 4 * row, peaks + 4 * row, 4 * padded, weights + 2 * KEYS * row,
                    )
                    # fmt: on
            for head in range(many):
                _, _, shrinks, _, sums = state_of(states, head, padded, dim, dim)
                _shrink(rows, dim, sums, shrinks)
                add_tile(dim, rows, present, places + 8 * PARTS, 2 * stride, own + head * own_bytes, sums)
                advance(places + 8 * PARTS, STEPS, 2 * dim * stored)
        release(0)

    return take_keys


@njit(inline="always")
def _bound(args: AttendArguments, position: int, kv_head: int, rows: int, padded: int, bounds: int) -> None:
    """Write what rows see, the first of which belongs to the token at `position`; those behind the last see nothing."""
    group = args.heads // args.kv_heads
    lows, highs = integers(bounds, padded), integers(bounds + 4 * padded, padded)
    slopes = floats(bounds + 8 * padded, padded)
    for row in range(rows, padded):
        lows[row], highs[row], slopes[row] = 0, 0, np.float32(0)
    for token in range(rows // group):
        high = position + token + 1
        for head in range(group):
            row = token * group + head
            lows[row], highs[row] = high - args.window if args.window != 0 else 0, high
            slopes[row] = np.float32(0) if args.slopes == 0 else floats(args.slopes, args.heads)[kv_head * group + head]


@njit(inline="always", fastmath=FLAGS)
def _shrink(rows: int, dim: int, sums: int, shrinks: int) -> None:
    """Multiply the sums [rows, dim] float32 of each row with its shrink, which mostly is 1 after the first tiles."""
    for row in range(rows):
        total, factor = floats(sums + 4 * dim * row, dim), floats(shrinks, rows)[row]
        if factor != np.float32(1):
            for d in range(dim):
                total[d] *= factor
