"""Attention of sequences that decode: one new token each, and a long context to read.

There are too few sequences to fill a chip, so that a context is split, into SPLIT tokens at a time whatever the batch
is, and the splits' results are combined in their order. It knows nothing of how the cache is read (`tiles`), nor of
prompts.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.gpu.launch import Target
from kernels.gpu.tiles import LOG2_E, LOWEST, attend_keys, load_rows, softmax_start, store_rows

SPLIT = 512
"""Tokens. Fixed, so that what a sequence's attention comes to depends on nothing beside it."""


class DecodeTiles(NamedTuple):
    """How a program of `decode_kernel` is cut."""

    block_n: int
    """Keys a step; divides SPLIT."""
    num_warps: int
    num_stages: int
    programs: int
    """That a multiprocessor holds at a time."""


def decode_tiles(head_dim: int, operand: torch.dtype, target: Target) -> DecodeTiles:
    """The tiles for dots of `operand`: two programs a multiprocessor, with two tiles of keys and of values under way.

    A multiprocessor has to have some 40 KB under way to draw its share of the memory's bandwidth.
    """
    tile_bytes = 8192 if target.shared_memory < 100_000 else 16384
    block_n = max(16, min(64, tile_bytes // (head_dim * operand.itemsize)))
    block_n = 1 << (block_n.bit_length() - 1)
    return DecodeTiles(block_n, 4, 2 if target.backend == "hip" else 3, 2)


@triton.jit(do_not_specialize=["table_stride", "sequences", "max_splits"])
def decode_kernel(
    out,
    partial_sums,
    partial_totals,
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
    sequences,
    max_splits,
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
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    SEQUENCES: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """`tiles`' attention for the first `sequences` (at most SEQUENCES) of a batch, which have one token each.

    The grid is as large as the chip, not as the work: programs take turns at the splits that there are, so that one
    captured grid serves every length. A sequence of one split is written to `out`, at once; the others leave their
    numerators in `partial_sums` [sequences, max_splits, heads, head_dim] and, in `partial_totals`
    [sequences, max_splits, heads, 2], the greatest logit and the denominator, for `combine_kernel`.
    """
    width: tl.constexpr = HEAD + TAIL
    index = tl.arange(0, SEQUENCES)
    contexts = tl.load(context_lens + index, mask=index < sequences, other=0)
    counts = tl.where(index < sequences, split_count(contexts, window, SPLIT), 0)
    ends = tl.cumsum(counts, 0)
    items = tl.sum(counts, 0) * KV_HEADS

    rows = tl.arange(0, ROWS)
    real = rows < GROUP
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        kv_head = item % KV_HEADS
        heads = kv_head * GROUP + rows
        sequence = tl.sum((ends <= item // KV_HEADS).to(tl.int32), 0)
        split = item // KV_HEADS - tl.sum(tl.where(index < sequence, counts, 0), 0)
        splits = tl.sum(tl.where(index == sequence, counts, 0), 0)
        context = tl.load(context_lens + sequence)

        visible = 0
        if window is not None:
            visible = tl.maximum(context - window, 0)
        begin = tl.maximum((visible // SPLIT + split) * SPLIT, visible // BLOCK_N * BLOCK_N)
        end = tl.minimum((visible // SPLIT + split + 1) * SPLIT, context)
        # Keys of which the window hides some, keys that are all seen, and a last tile that the context may not fill.
        all_seen = begin
        if window is not None:
            all_seen = tl.minimum(tl.maximum(tl.cdiv(visible, BLOCK_N) * BLOCK_N, begin), end)
        edges = (begin, all_seen, tl.maximum(end // BLOCK_N * BLOCK_N, all_seen), end)

        q_rows = load_rows(
            q + sequence.to(tl.int64) * Q_TOKEN_STRIDE + heads * Q_HEAD_STRIDE, real, HEAD, TAIL, OPERAND, False
        )
        key_scale = scale if key_scales is None else scale * tl.load(key_scales + kv_head)
        head_slopes = None if slopes is None else tl.load(slopes + heads, mask=real, other=0.0) * LOG2_E
        sums, greatest, total = softmax_start(None, heads, real, ROWS, HEAD, TAIL)
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
                context - 1 + tl.zeros([ROWS], tl.int32),
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
        if splits == 1:
            factor = _last_factor(greatest, total, sinks, value_scales, heads, kv_head, real)
            out_rows = out + (sequence.to(tl.int64) * KV_HEADS * GROUP + heads) * width
            store_rows(out_rows, real, sums, factor, HEAD, TAIL)
        else:
            places = (sequence.to(tl.int64) * max_splits + split) * KV_HEADS * GROUP + heads
            store_rows(partial_sums + places * width, real, sums, tl.full([ROWS], 1.0, tl.float32), HEAD, TAIL)
            tl.store(partial_totals + places * 2, greatest, mask=real)
            tl.store(partial_totals + places * 2 + 1, total, mask=real)


@triton.jit(do_not_specialize=["max_splits", "group"])
def combine_kernel(
    out,
    partial_sums,
    partial_totals,
    value_scales,
    sinks,
    context_lens,
    window,
    max_splits,
    group,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The splits of one sequence and one head, in their order, BLOCK at a time: programs are (sequences, heads).

    sum_s 2^(greatest_s - greatest) sums_s / sum_s 2^(greatest_s - greatest) total_s
    """
    width: tl.constexpr = HEAD + TAIL
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    splits = split_count(tl.load(context_lens + sequence), window, SPLIT)
    if splits <= 1:
        return
    one = tl.zeros([1], tl.int32)
    sums, greatest, total = softmax_start(None, one, one == 0, 1, HEAD, TAIL)
    for start in range(0, splits, BLOCK):
        split = start + tl.arange(0, BLOCK)
        real = split < splits
        places = (sequence * max_splits + split) * heads + head
        tops = tl.load(partial_totals + places * 2, mask=real, other=LOWEST)
        totals = tl.load(partial_totals + places * 2 + 1, mask=real, other=0.0)
        parts = load_rows(partial_sums + places * width, real, HEAD, TAIL, tl.float32, False)
        top = tl.maximum(greatest, tl.max(tops, 0))
        fade = tl.exp2(greatest - top)
        shares = tl.exp2(tops - top)
        if TAIL:
            sums = (_add_shares(sums[0], fade, shares, parts[0]), _add_shares(sums[1], fade, shares, parts[1]))
        else:
            sums = (_add_shares(sums[0], fade, shares, parts[0]),)
        total = tl.fma(total, fade, tl.sum(totals * shares, 0))
        greatest = top
    factor = _last_factor(greatest, total, sinks, value_scales, one + head, head // group, one == 0)
    out_rows = out + (sequence * heads + head) * width + one
    store_rows(out_rows, one == 0, sums, factor, HEAD, TAIL)


@triton.jit
def split_count(context, window, SPLIT: tl.constexpr):
    """How many splits a context has that the window shows any of; 1 at least, which writes the zeros of padding."""
    first = 0
    if window is not None:
        first = tl.maximum(context - window, 0) // SPLIT
    return tl.maximum(tl.cdiv(context, SPLIT) - first, 1)


@triton.jit
def _last_factor(greatest, total, sinks, value_scales, heads, kv_head, real):
    """What numerators are multiplied by in the end; 0 if there was no key."""
    share = tl.full(total.shape, 1.0, tl.float32)
    if sinks is not None:
        sink = tl.load(sinks + heads, mask=real, other=0.0) * LOG2_E
        top = tl.maximum(greatest, sink)
        share = tl.exp2(greatest - top)
        total = tl.fma(total, share, tl.exp2(sink - top))
    if value_scales is not None:
        share *= tl.load(value_scales + kv_head)
    return tl.where(total > 0, share / tl.where(total > 0, total, 1.0), 0.0)


@triton.jit
def _add_shares(sums, fade, shares, parts):
    """`sums` [1, D] times `fade` [1], and the rows of `parts` [BLOCK, D] times `shares` [BLOCK]."""
    return sums * fade[:, None] + tl.sum(parts * shares[:, None], 0)[None, :]
