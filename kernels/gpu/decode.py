"""Attention of decoding sequences, which have one new token and a long context each.

A batch has too few sequences to fill a chip, so each context is cut into splits, which are computed in parallel and
combined in order (Flash-Decoding: Dao et al., 2023). The size of a sequence's splits grows with what it sees of its own
context: a short one needs many programs to be fast, and a long one has enough of them. It depends on nothing else, so
no bit of a sequence's result depends on the rest of the batch. Reading the cache is the business of `tiles`; nothing
here knows of prompts.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.gpu.arrival import last_to_arrive
from kernels.gpu.dependent import wait_for_kernels_before
from kernels.gpu.launch import Target
from kernels.gpu.tiles import LOG2_E, LOWEST, attend_keys, load_rows, softmax_start, store_rows

SPLIT = 128
"""Keys in the smallest split."""


class Splitting(NamedTuple):
    """The size of the splits: a power of two, so large that there are at most `parts`, but within two bounds."""

    smallest_bits: int = SPLIT.bit_length() - 1
    """log2 of the keys in the smallest split, which is a multiple of the keys in a tile."""
    growths: int = 3
    """log2 of the ratio of the largest split to the smallest."""
    parts: int = 16

    def most(self, context: int, window: int | None) -> int:
        """The most splits of any sequence with a context of up to `context`, as `split_count` counts them."""
        seen = context if window is None else min(context, window)
        ends = [min(seen, self.parts << self.smallest_bits + growth) for growth in range(self.growths)]
        counts = [-(-end // (1 << self.smallest_bits + growth)) for growth, end in enumerate([*ends, seen])]
        # The first key in a window lies anywhere in its split.
        return max(1, *counts) + (seen < context)


class DecodeTiles(NamedTuple):
    """The tile sizes and launch options of `decode_kernel`."""

    block_n: int
    """Keys in a tile; divides the smallest split."""
    num_warps: int
    num_stages: int
    programs: int
    """Programs that run on a multiprocessor at the same time."""


class Decoding(NamedTuple):
    """A choice of how to decode; `python -m benchmarks --variants` measures others.

    Neither `folded` nor `paired` has run on a GPU yet, where both save time by the instructions they take, so that
    neither is the default.
    """

    splitting: Splitting = Splitting()
    tiles: DecodeTiles | None = None
    """None for those of `decode_tiles`."""
    folded: bool = False
    """Whether the last program to finish a part of a sequence combines its splits; otherwise a second kernel does."""
    paired: bool = False
    """Whether values in an FP8 cache are read in pairs of dimensions, where a head is not cut into two parts."""


DECODING = Decoding()
"""The choice that is served."""


def splits_together(rows: int, head_dim: int) -> int:
    """The number of splits, a power of two, whose `rows` rows are loaded at the same time when they are combined.

    They take up to 64 registers of a thread, of 128 threads.
    """
    most = max(1, min(16, 8192 // (rows * head_dim)))
    return 1 << (most.bit_length() - 1)


def decode_tiles(head_dim: int, operand: torch.dtype, target: Target) -> DecodeTiles:
    """The tile sizes for heads of `head_dim` and dots of `operand` on `target`.

    A multiprocessor needs loads of about 40 KB in flight to use its share of the memory bandwidth. Two programs, each
    with two tiles of keys and two of values in flight, provide that.
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
    arrivals,
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
    PAIRED: tl.constexpr,
    SPLIT_BITS: tl.constexpr,
    GROWTHS: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    SEQUENCES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FOLDED: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    TOGETHER: tl.constexpr,
    ARRIVING: tl.constexpr,
    HIP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Attention, as defined in `tiles`, for the first `sequences` sequences of a batch, which have one new token each.

    At most SEQUENCES sequences are allowed. The grid has one dimension, and its size depends on the chip: programs
    loop over the (split, KV head) items, so that one captured grid serves every context length.

    A sequence with one split is written to `out` [sequences, heads, head_dim]. The other sequences leave their
    numerators in `partial_sums` [sequences, max_splits, heads, head_dim], and their greatest logit and denominator in
    `partial_totals` [sequences, max_splits, heads, 2]. If FOLDED, the last program to finish a part of a sequence's KV
    head combines them, as `arrivals` [at least sequences * KV_HEADS] tells; otherwise `combine_kernel` does.

    A program arrives only after up to ARRIVING items, for all of them at once: to wait for its stores and for an atomic
    operation's result after each item would take longer than it takes to combine them.
    """
    wait_for_kernels_before(DEPENDENT)
    width: tl.constexpr = HEAD + TAIL
    index = tl.arange(0, SEQUENCES)  # [SEQUENCES]
    contexts = tl.load(context_lens + index, mask=index < sequences, other=0)  # [SEQUENCES]
    counts = tl.where(index < sequences, split_count(contexts, window, SPLIT_BITS, GROWTHS, PARTS), 0)  # [SEQUENCES]
    ends = tl.cumsum(counts, 0)  # [SEQUENCES]
    items = tl.sum(counts, 0) * KV_HEADS

    rows = tl.arange(0, ROWS)  # [ROWS]
    real = rows < GROUP  # [ROWS]
    lanes = tl.arange(0, ARRIVING)  # [ARRIVING]
    stride = tl.num_programs(0)
    for first in range(tl.program_id(0), items, stride * ARRIVING):
        # The index of each item's sequence and KV head, and their number of splits, or 0 if there is one split alone.
        heads_due = tl.zeros([ARRIVING], tl.int32)  # [ARRIVING]
        splits_due = tl.zeros([ARRIVING], tl.int32)  # [ARRIVING]
        for item in range(first, tl.minimum(items, first + stride * ARRIVING), stride):
            kv_head = item % KV_HEADS
            heads = kv_head * GROUP + rows  # [ROWS]
            sequence = tl.sum((ends <= item // KV_HEADS).to(tl.int32), 0)
            split = item // KV_HEADS - tl.sum(tl.where(index < sequence, counts, 0), 0)
            splits = tl.sum(tl.where(index == sequence, counts, 0), 0)
            context = tl.load(context_lens + sequence)

            visible = 0
            if window is not None:
                visible = tl.maximum(context - window, 0)
            bits = split_bits(context, window, SPLIT_BITS, GROWTHS, PARTS)
            place = (visible >> bits) + split
            begin = tl.maximum(place << bits, visible // BLOCK_N * BLOCK_N)
            end = tl.minimum((place + 1) << bits, context)
            # Three parts: keys that the window may hide, keys that are all visible, a last tile that may not be full.
            all_seen = begin
            if window is not None:
                all_seen = tl.minimum(tl.maximum(tl.cdiv(visible, BLOCK_N) * BLOCK_N, begin), end)
            edges = (begin, all_seen, tl.maximum(end // BLOCK_N * BLOCK_N, all_seen), end)

            # [ROWS, HEAD], [ROWS, TAIL]
            q_rows = load_rows(
                q + sequence.to(tl.int64) * Q_TOKEN_STRIDE + heads * Q_HEAD_STRIDE, real, HEAD, TAIL, OPERAND, False
            )
            key_scale = scale if key_scales is None else scale * tl.load(key_scales + kv_head)
            head_slopes = None if slopes is None else tl.load(slopes + heads, mask=real, other=0.0) * LOG2_E  # [ROWS]
            # ([ROWS, HEAD], [ROWS, TAIL]), [ROWS], [ROWS]
            if PAIRED:
                sums, greatest, total = softmax_start(None, heads, real, ROWS, HEAD // 2, HEAD // 2)
            else:
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
                    PAIRED,
                )
            if PAIRED:
                sums = (tl.reshape(tl.join(sums[0], sums[1]), [ROWS, HEAD]),)
            if splits == 1:
                factor = _last_factor(greatest, total, sinks, value_scales, heads, kv_head, real)  # [ROWS]
                out_rows = out + (sequence.to(tl.int64) * KV_HEADS * GROUP + heads) * width  # [ROWS]
                store_rows(out_rows, real, sums, factor, HEAD, TAIL)
            else:
                places = (sequence.to(tl.int64) * max_splits + split) * KV_HEADS * GROUP + heads  # [ROWS]
                store_rows(partial_sums + places * width, real, sums, tl.full([ROWS], 1.0, tl.float32), HEAD, TAIL)
                tl.store(partial_totals + places * 2, greatest, mask=real)
                tl.store(partial_totals + places * 2 + 1, total, mask=real)
                mine = (lanes == (item - first) // stride) & FOLDED  # [ARRIVING]
                heads_due = tl.where(mine, sequence * KV_HEADS + kv_head, heads_due)
                splits_due = tl.where(mine, splits, splits_due)
        if FOLDED:
            last = last_to_arrive(arrivals + heads_due, splits_due, HIP, splits_due > 0)  # [ARRIVING]
            for _ in range(tl.sum(last.to(tl.int32), 0)):
                lane = tl.max(tl.where(last, lanes, -1), 0)
                last &= lanes != lane
                due = tl.sum(tl.where(lanes == lane, heads_due, 0), 0)
                kv_head = due % KV_HEADS
                heads = tl.arange(0, GROUP_ROWS)  # [GROUP_ROWS]
                _combine(
                    out,
                    partial_sums,
                    partial_totals,
                    value_scales,
                    sinks,
                    due // KV_HEADS,
                    kv_head * GROUP + heads,
                    heads < GROUP,
                    kv_head,
                    tl.sum(tl.where(lanes == lane, splits_due, 0), 0),
                    max_splits,
                    KV_HEADS * GROUP,
                    GROUP_ROWS,
                    HEAD,
                    TAIL,
                    TOGETHER,
                )


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
    SPLIT_BITS: tl.constexpr,
    GROWTHS: tl.constexpr,
    PARTS: tl.constexpr,
    TOGETHER: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """`_combine` for every head of every sequence: the grid is (sequences, heads).

    Sequences with one split are left as they are.
    """
    wait_for_kernels_before(DEPENDENT)
    sequence = tl.program_id(0)
    splits = split_count(tl.load(context_lens + sequence), window, SPLIT_BITS, GROWTHS, PARTS)
    if splits > 1:
        head = tl.program_id(1) + tl.zeros([1], tl.int32)  # [1]
        _combine(
            out,
            partial_sums,
            partial_totals,
            value_scales,
            sinks,
            sequence,
            head,
            head >= 0,
            tl.program_id(1) // group,
            splits,
            max_splits,
            tl.num_programs(1),
            1,
            HEAD,
            TAIL,
            TOGETHER,
        )


@triton.jit
def _combine(
    out,
    partial_sums,
    partial_totals,
    value_scales,
    sinks,
    sequence,
    heads,
    real,
    kv_head,
    splits,
    max_splits,
    all_heads,
    ROWS: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """`out = sum_s 2^(greatest_s - greatest) sums_s / sum_s 2^(greatest_s - greatest) total_s`, over splits s in order.

    It does this for the heads `heads` [ROWS] of a sequence, where they are `real` [ROWS]. The loads of TOGETHER splits
    are on their way at the same time. Splits are added one by one, so that no bit depends on ROWS, nor on the kernel.
    """
    width: tl.constexpr = HEAD + TAIL
    sequence = sequence.to(tl.int64)
    # ([ROWS, HEAD], [ROWS, TAIL]), [ROWS], [ROWS]
    sums, greatest, total = softmax_start(None, heads, real, ROWS, HEAD, TAIL)
    for start in range(0, splits, TOGETHER):
        first = (sequence * max_splits + start) * all_heads + heads  # [ROWS]
        ahead = tl.arange(0, TOGETHER)  # [TOGETHER]
        there = real[:, None] & (start + ahead < splits)[None, :]  # [ROWS, TOGETHER]
        places = first[:, None] + ahead[None, :] * all_heads  # [ROWS, TOGETHER]
        tops = tl.load(partial_totals + places * 2, mask=there, other=LOWEST)  # [ROWS, TOGETHER]
        top = tl.maximum(greatest, tl.max(tops, 1))  # [ROWS]
        fade = tl.exp2(greatest - top)  # [ROWS]
        greatest = top
        total *= fade
        sums = _scaled(sums, fade, TAIL)
        for step in tl.static_range(TOGETHER):
            owned = real & (tl.full([ROWS], start + step, tl.int32) < splits)  # [ROWS]
            place = first + step * all_heads  # [ROWS]
            share = tl.exp2(tl.load(partial_totals + place * 2, mask=owned, other=LOWEST) - top)  # [ROWS]
            total = tl.fma(tl.load(partial_totals + place * 2 + 1, mask=owned, other=0.0), share, total)
            # [ROWS, HEAD], [ROWS, TAIL]
            parts = load_rows(partial_sums + place * width, owned, HEAD, TAIL, tl.float32, False)
            sums = _add_share(sums, share, parts, TAIL)
    factor = _last_factor(greatest, total, sinks, value_scales, heads, kv_head, real)  # [ROWS]
    store_rows(out + (sequence * all_heads + heads) * width, real, sums, factor, HEAD, TAIL)


@triton.jit
def split_bits(context, window, SPLIT_BITS: tl.constexpr, GROWTHS: tl.constexpr, PARTS: tl.constexpr):
    """log2 of the keys in a split of a sequence, in the shape of `context`; see `Splitting`."""
    seen = context if window is None else tl.minimum(context, window)  # Shape of context.
    bits = seen * 0 + SPLIT_BITS  # Shape of context.
    for growth in tl.static_range(GROWTHS):
        bits += (seen > (PARTS << (SPLIT_BITS + growth))).to(tl.int32)
    return bits


@triton.jit
def split_count(context, window, SPLIT_BITS: tl.constexpr, GROWTHS: tl.constexpr, PARTS: tl.constexpr):
    """The number of splits of a context that have a visible key, in the shape of `context`.

    It is at least 1, so that a program writes the zeros of a padding sequence.
    """
    bits = split_bits(context, window, SPLIT_BITS, GROWTHS, PARTS)  # Shape of context.
    first = 0
    if window is not None:
        first = tl.maximum(context - window, 0) >> bits  # Shape of context.
    return tl.maximum(((context - 1) >> bits) + 1 - first, 1)


@triton.jit
def _last_factor(greatest, total, sinks, value_scales, heads, kv_head, real):
    """The factor, for M rows, that turns numerators into outputs: 1 / denominator, with sinks and value scales.

    The factor is 0 for a row without keys.
    """
    share = tl.full(total.shape, 1.0, tl.float32)  # [M]
    if sinks is not None:
        sink = tl.load(sinks + heads, mask=real, other=0.0) * LOG2_E  # [M]
        top = tl.maximum(greatest, sink)  # [M]
        share = tl.exp2(greatest - top)
        total = tl.fma(total, share, tl.exp2(sink - top))
    if value_scales is not None:
        share *= tl.load(value_scales + kv_head)
    return tl.where(total > 0, share / tl.where(total > 0, total, 1.0), 0.0)


@triton.jit
def _scaled(sums, factor, TAIL: tl.constexpr):
    """`sums * factor`: a tuple of [M, HEAD] and, if not 0, [M, TAIL]; `factor` is [M]."""
    if TAIL:
        return sums[0] * factor[:, None], sums[1] * factor[:, None]
    else:
        return (sums[0] * factor[:, None],)


@triton.jit
def _add_share(sums, share, parts, TAIL: tl.constexpr):
    """`sums + share * parts`: tuples of [M, HEAD] and, if not 0, [M, TAIL]; `share` is [M]."""
    head = tl.fma(parts[0], share[:, None], sums[0])  # [M, HEAD]
    if TAIL:
        return head, tl.fma(parts[1], share[:, None], sums[1])
    else:
        return (head,)
