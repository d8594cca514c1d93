"""Attention of prompts: sequences with many new tokens, whose queries are processed in tiles (FlashAttention-2: Dao,
arXiv 2307.08691).

Reading the cache is the business of `tiles`; nothing here knows of decoding sequences.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.gpu.launch import Target
from kernels.gpu.tiles import LOG2_E, attend_keys, load_rows, softmax_start, store_rows


class PrefillTiles(NamedTuple):
    """The tile sizes and launch options of `prefill_kernel`."""

    block_m: int
    """Rows in a tile of queries; a row is one head of one token."""
    block_n: int
    """Keys in a tile."""
    num_warps: int
    num_stages: int


class PrefillWarps(NamedTuple):
    """The options of `hopper_prefill.hopper_prefill_kernel`."""

    stages: int = 2
    """Steps of 128 keys whose keys and values shared memory has room for."""
    turns: bool = True
    """Whether the two groups of warps that compute take turns with the tensor cores."""


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
"""head_dim -> the largest tiles that need no register spills, as `python -m kernels.aot` reports.

_HOPPER is for chips with at least Hopper's shared memory, _AMPERE for NVIDIA chips with less, _CDNA for AMD."""


def prefill_tiles(head_dim: int, operand: torch.dtype, target: Target) -> PrefillTiles:
    """The tile sizes for heads of `head_dim` and dots of `operand` on `target`."""
    if operand == torch.float32:
        # Tensor cores do not compute float32 products, so all operands take registers.
        return PrefillTiles(64, 32, 8, 2) if head_dim <= 64 else PrefillTiles(16, 16, 4, 1)
    if operand == torch.float16 and head_dim == 256:
        return PrefillTiles(64, 32, 8, 2)  # Converting FP8 codes takes registers too.
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
    """Attention, as defined in `tiles`, for the sequences `first` to `sequences` - 1 of a batch.

    Each sequence before `first` has exactly one new token. `q` and `out` are [tokens, heads, head_dim].

    The GROUP query heads that share a KV head are neighbouring rows: row r of a sequence is query head r % GROUP of
    its token r // GROUP. A tile of BLOCK_M rows thus reads its keys once for BLOCK_M / GROUP tokens.

    The grid is (KV_HEADS, tiles), where tiles is at least as many as `find_tile` counts in all sequences.
    """
    kv_head = tl.program_id(0)
    # The order is reversed so that the longest work starts first: later tiles of a sequence have more keys, and later
    # sequences have more tokens.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    sequence, tile = find_tile(tile, query_starts, first, sequences, GROUP, BLOCK_M)
    begin = tl.load(query_starts + sequence)
    tokens = tl.load(query_starts + sequence + 1) - begin
    if tile * BLOCK_M >= tokens * GROUP:
        return

    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    real = rows < tokens * GROUP  # [BLOCK_M]
    heads = kv_head * GROUP + rows % GROUP  # [BLOCK_M]
    token = begin + rows // GROUP  # [BLOCK_M]
    context = tl.load(context_lens + sequence)
    positions = context - tokens + rows // GROUP  # [BLOCK_M]
    # Padding has tokens without a context: they lie before the first key, and see none.
    first_position = tl.maximum(context - tokens + tile * BLOCK_M // GROUP, 0)
    last_position = context - tokens + tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP, tokens - 1)
    last_position = tl.maximum(last_position, -1)
    # The window and the causal mask divide the keys, at multiples of BLOCK_N, into four parts: keys before every row's
    # window, which are skipped; keys in the windows of some rows; keys that all rows see; and keys that are after some
    # rows' positions. Only the third part needs no mask.
    seen_by_some = 0
    seen_by_all = 0
    if window is not None:
        seen_by_some = tl.maximum(first_position - window + 1, 0) // BLOCK_N * BLOCK_N
        seen_by_all = tl.minimum(
            tl.cdiv(tl.maximum(last_position - window + 1, 0), BLOCK_N) * BLOCK_N, last_position + 1
        )
    unmasked_end = tl.maximum((first_position + 1) // BLOCK_N * BLOCK_N, seen_by_all)
    edges = (seen_by_some, seen_by_all, unmasked_end, last_position + 1)

    # [BLOCK_M, HEAD], [BLOCK_M, TAIL]
    q_rows = load_rows(
        q + token.to(tl.int64) * Q_TOKEN_STRIDE + heads * Q_HEAD_STRIDE, real, HEAD, TAIL, OPERAND, False
    )
    key_scale = scale if key_scales is None else scale * tl.load(key_scales + kv_head)
    head_slopes = None if slopes is None else tl.load(slopes + heads, mask=real, other=0.0) * LOG2_E  # [BLOCK_M]
    # ([BLOCK_M, HEAD], [BLOCK_M, TAIL]), [BLOCK_M], [BLOCK_M]
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
    factor = tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)  # [BLOCK_M]
    if value_scales is not None:
        factor *= tl.load(value_scales + kv_head)
    width: tl.constexpr = HEAD + TAIL
    out_rows = out + (token.to(tl.int64) * KV_HEADS * GROUP + heads) * width  # [BLOCK_M]
    store_rows(out_rows, real, sums, factor, HEAD, TAIL)


@triton.jit
def find_tile(tile, query_starts, first, sequences, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """The sequence that the tile with index `tile` belongs to, and the tile's index among those of that sequence.

    Each sequence has one tile more than its share of the rows, for a last tile that is partly empty.
    """
    sequence = first
    beyond = sequences
    while beyond - sequence > 1:
        middle = (sequence + beyond) // 2
        if (tl.load(query_starts + middle) - first) * GROUP // BLOCK_M + middle - first <= tile:
            sequence = middle
        else:
            beyond = middle
    tile -= (tl.load(query_starts + sequence) - first) * GROUP // BLOCK_M + sequence - first
    return sequence, tile
