"""Attention of prompts: sequences with many new tokens, each a row of tiles of queries against tiles of its keys.

It knows nothing of how the cache is read (`tiles`), nor of sequences that decode.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.gpu.launch import Target
from kernels.gpu.tiles import LOG2_E, attend_keys, load_rows, softmax_start, store_rows


class PrefillTiles(NamedTuple):
    """How a program of `prefill_kernel` is cut."""

    block_m: int
    """Rows of queries: a row is one head of one token."""
    block_n: int
    """Keys a step."""
    num_warps: int
    num_stages: int


_AMPERE = {
    64: PrefillTiles(128, 64, 8, 3),
    80: PrefillTiles(128, 64, 8, 3),
    96: PrefillTiles(128, 64, 8, 3),
    128: PrefillTiles(64, 32, 4, 2),
    192: PrefillTiles(32, 32, 4, 2),
    256: PrefillTiles(64, 32, 8, 2),
}
_HOPPER = {
    64: PrefillTiles(128, 64, 8, 3),
    80: PrefillTiles(128, 64, 8, 3),
    96: PrefillTiles(128, 64, 8, 3),
    128: PrefillTiles(128, 64, 8, 3),
    192: PrefillTiles(128, 64, 8, 3),
    256: PrefillTiles(128, 32, 8, 2),
}
_CDNA = {
    64: PrefillTiles(128, 64, 8, 2),
    80: PrefillTiles(128, 64, 8, 2),
    96: PrefillTiles(128, 64, 4, 2),
    128: PrefillTiles(128, 64, 8, 2),
    192: PrefillTiles(128, 64, 4, 2),
    256: PrefillTiles(64, 32, 8, 2),
}
"""By head dimension, the largest tiles that `python -m kernels.aot` finds to need no spills.

Hopper's are for chips with its shared memory, Ampere's for those with less."""


def prefill_tiles(head_dim: int, operand: torch.dtype, target: Target) -> PrefillTiles:
    """The tiles for dots of `operand`."""
    if operand == torch.float32:
        # No tensor core takes these: every product passes through the registers.
        return PrefillTiles(64, 32, 8, 2) if head_dim <= 64 else PrefillTiles(16, 16, 4, 1)
    if operand == torch.float16 and head_dim == 256:
        return PrefillTiles(64, 32, 8, 2)  # Codes of FP8 take registers too.
    if target.backend == "hip":
        return _CDNA[max(head_dim, 64)]
    return (_HOPPER if target.shared_memory > 200_000 else _AMPERE)[max(head_dim, 64)]


@triton.jit(do_not_specialize=["table_stride", "first", "sequences"])
def prefill_kernel(
    out,
    q,
    keys,
    values,
    key_scales,
    value_scales,
    sinks,
    slopes,
    context_lens,
    block_table,
    table_stride,
    scale,
    cap,
    window,
    query_starts,
    first,
    sequences,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    Q_TOKEN_STRIDE: tl.constexpr,
    Q_HEAD_STRIDE: tl.constexpr,
    PAGE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    TOKEN_STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    OPERAND: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """`tiles`' attention for the sequences `first` to `sequences` - 1; before `first` each has one token.

    The query heads that share a KV head are rows beside one another: row r of a sequence is head r % GROUP of token
    r // GROUP, so that a tile of BLOCK_M rows reads its keys once for BLOCK_M / GROUP tokens. Programs are
    (KV_HEADS, tiles), where tiles may be any number from `tiles_before(sequences)` up.
    """
    kv_head = tl.program_id(0)
    # Later tiles of a sequence have more keys, and later sequences more tokens: what takes longest begins first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    sequence = first
    beyond = sequences
    while beyond - sequence > 1:
        middle = (sequence + beyond) // 2
        if _tiles_before(middle, query_starts, first, GROUP, BLOCK_M) <= tile:
            sequence = middle
        else:
            beyond = middle
    tile -= _tiles_before(sequence, query_starts, first, GROUP, BLOCK_M)
    begin = tl.load(query_starts + sequence)
    tokens = tl.load(query_starts + sequence + 1) - begin
    if tile * BLOCK_M >= tokens * GROUP:
        return

    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    real = rows < tokens * GROUP
    heads = kv_head * GROUP + rows % GROUP
    token = begin + rows // GROUP
    context = tl.load(context_lens + sequence)
    positions = context - tokens + rows // GROUP
    first_position = context - tokens + tile * BLOCK_M // GROUP
    last_position = context - tokens + tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP, tokens - 1)
    # Keys in four parts, cut between tiles: those before the window of every row, those within the windows of some,
    # those that every row sees, and those that some rows are before. Only of the third is no key masked for any row.
    seen_by_some = 0
    seen_by_all = 0
    if window is not None:
        seen_by_some = tl.maximum(first_position - window + 1, 0) // BLOCK_N * BLOCK_N
        seen_by_all = tl.minimum(
            tl.cdiv(tl.maximum(last_position - window + 1, 0), BLOCK_N) * BLOCK_N, last_position + 1
        )
    unmasked_end = tl.maximum((first_position + 1) // BLOCK_N * BLOCK_N, seen_by_all)
    edges = (seen_by_some, seen_by_all, unmasked_end, last_position + 1)

    q_rows = load_rows(
        q + token.to(tl.int64) * Q_TOKEN_STRIDE + heads * Q_HEAD_STRIDE, real, HEAD, TAIL, OPERAND, False
    )
    key_scale = scale if key_scales is None else scale * tl.load(key_scales + kv_head)
    head_slopes = None if slopes is None else tl.load(slopes + heads, mask=real, other=0.0) * LOG2_E
    sums, greatest, total = softmax_start(sinks, heads, real, BLOCK_M, HEAD, TAIL)
    for part in tl.static_range(0 if window is not None else 1, 3):
        sums, greatest, total = attend_keys(
            sums,
            greatest,
            total,
            q_rows,
            keys + kv_head * HEAD_STRIDE,
            values + kv_head * HEAD_STRIDE,
            block_table + sequence.to(tl.int64) * table_stride,
            edges[part],
            edges[part + 1],
            context,
            positions,
            key_scale,
            cap,
            head_slopes,
            window,
            part != 1,
            BLOCK_N,
            PAGE,
            PAGE_STRIDE,
            TOKEN_STRIDE,
            HEAD,
            TAIL,
            OPERAND,
            NATIVE_FP8,
        )
    factor = 1.0 / total
    if value_scales is not None:
        factor *= tl.load(value_scales + kv_head)
    width: tl.constexpr = HEAD + TAIL
    out_rows = out + (token.to(tl.int64) * KV_HEADS * GROUP + heads) * width
    store_rows(out_rows, real, sums, factor, HEAD, TAIL)


@triton.jit
def _tiles_before(sequence, query_starts, first, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """The number of a sequence's first tile, where each has room for a tile more than its rows would need in a row."""
    return (tl.load(query_starts + sequence) - first) * GROUP // BLOCK_M + sequence - first
