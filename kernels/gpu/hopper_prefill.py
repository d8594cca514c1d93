"""Attention of prompts by Hopper's own instructions (FlashAttention-3: Shah et al., arXiv 2407.08608).

The portable kernel of `prefill` reaches 474 of an H200's 800 TFLOP/s.

A program is three groups of warps that run side by side. One copies keys and values to shared memory. Two attend to
half of the rows each and take turns: while one computes its softmax, the other keeps the tensor cores busy.

Triton does not schedule kernels like that by itself, so this one is written in Gluon, Triton's lower level, in which
layouts of registers, copies and barriers are explicit. Gluon is experimental: this module is not imported before the
kernel is asked for.

    HALF    0 or 1, the half of a program's rows
    PART    rows of a half
    STEP    keys that are attended to at a time
    WIDTH   dimensions of a tile in shared memory, whose rows have 128 bytes; a head is two of them, left and right
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.backend import AttentionOptions, BatchLayout, LayerCache
from kernels.gpu.launch import Launcher, Target
from kernels.gpu.prefill import PrefillWarps, find_tile
from kernels.gpu.tiles import LOWEST

PART = gl.constexpr(64)
STEP = gl.constexpr(128)
WIDTH = gl.constexpr(64)
BYTES = gl.constexpr(2)
"""The size of an element."""
ROWS = 2 * PART.value
"""Rows of a program; a row is one head of one token."""
ELEMENTS = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}

_copy = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
"""The bulk tensor copy; async_load is the name that Triton 3.9 has for it."""
_find_tile = gluon.jit(find_tile.fn)


def fits(target: Target, q: Tensor, cache: LayerCache, options: AttentionOptions) -> bool:
    """Whether the kernel can serve queries [tokens, heads, dim] over `cache` on `target`.

    A cache block is a part of a step, or made of whole ones. It has no fewer than 8 tokens, since shared memory's rows
    lie in a pattern that comes again after 8.
    """
    block_size = cache.keys.shape[1]
    return (
        (target.backend, target.arch) == ("cuda", 90)
        and q.shape[2] == 2 * WIDTH.value
        and q.dtype == cache.keys.dtype
        and q.dtype in ELEMENTS
        and block_size >= 8
        and max(block_size, STEP.value) % min(block_size, STEP.value) == 0
        and all(x is None for x in (options.window, options.softcap, options.alibi_slopes, options.sinks))
    )


def attend_prompts(
    launch: Launcher,
    out: Tensor,
    q: Tensor,
    cache: LayerCache,
    layout: BatchLayout,
    scale: float,
    tiles: int,
    warps: PrefillWarps,
) -> None:
    """Start the kernel for the prompts of a batch, on `tiles` tiles of ROWS rows for each key head.

    The operands must be such that it `fits`, and `scale` includes log2(e).
    """
    (_, block_size, kv_heads, dim), table = cache.keys.shape, layout.block_table
    copied = [min(block_size, STEP.value), WIDTH.value]
    shared = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    keys, values = (
        TensorDescriptor.from_tensor(pool.view(-1, kv_heads * dim), copied, shared)
        for pool in (cache.keys, cache.values)
    )
    launch(
        hopper_prefill_kernel,
        (kv_heads, tiles),
        *(out, q, keys, values, scale, layout.context_lens, table, table.stride(0)),
        *(layout.query_starts, layout.singles, layout.context_lens.shape[0]),
        KV_HEADS=kv_heads,
        GROUP=q.shape[1] // kv_heads,
        Q_TOKEN_STRIDE=q.stride(0),
        Q_HEAD_STRIDE=q.stride(1),
        PAGE=block_size,
        OPERAND=ELEMENTS[q.dtype],
        SHARED=shared,
        STAGES=warps.stages,
        TURNS=warps.turns,
        num_warps=4,
        num_stages=1,
    )


@gluon.jit(do_not_specialize=["table_stride", "first", "sequences"])
def hopper_prefill_kernel(
    out,
    q,
    keys,
    values,
    scale,
    context_lens,
    block_table,
    table_stride,
    query_starts,
    first,
    sequences,
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    Q_TOKEN_STRIDE: gl.constexpr,
    Q_HEAD_STRIDE: gl.constexpr,
    PAGE: gl.constexpr,
    OPERAND: gl.constexpr,
    SHARED: gl.constexpr,
    STAGES: gl.constexpr,
    TURNS: gl.constexpr,
):
    """`prefill.prefill_kernel` for heads of 2 WIDTH dimensions without windows, caps, slopes and sinks.

    `keys` and `values` describe pools [slots, KV_HEADS * 2 WIDTH], of which WIDTH columns and at most PAGE slots are
    copied at a time. STAGES is the number of steps whose keys and values shared memory has room for. Without TURNS both
    halves use the tensor cores when they can.

    Results have other bits than those of the portable kernel, since a step has more keys. They do not depend on other
    rows either.
    """
    kv_head = gl.program_id(0)
    tile = gl.num_programs(1) - 1 - gl.program_id(1)
    sequence, tile = _find_tile(tile, query_starts, first, sequences, GROUP, 2 * PART)
    begin = gl.load(query_starts + sequence)
    tokens = gl.load(query_starts + sequence + 1) - begin
    row = tile * 2 * PART
    if row >= tokens * GROUP:
        return

    context = gl.load(context_lens + sequence)
    before = context - tokens
    # Padding has tokens without a context: its rows see no key, which one step shows them.
    seen_by_all = gl.maximum(before + row // GROUP + 1, 0) // STEP * STEP
    end = gl.maximum(before + gl.minimum((row + 2 * PART - 1) // GROUP + 1, tokens), 1)

    queries = gl.allocate_shared_memory(OPERAND, [4, PART, WIDTH], SHARED)
    rings = (_ring(OPERAND, SHARED, STAGES), _ring(OPERAND, SHARED, STAGES))
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(turns.index(0), count=1)
    mbarrier.init(turns.index(1), count=1)
    fence_async_shared()

    at = (row, tokens * GROUP, begin, before, kv_head * GROUP)
    task = (out, q, queries, rings, turns, at, (seen_by_all, end, context), scale)
    table = block_table + sequence.to(gl.int64) * table_stride
    QUERY_HEADS: gl.constexpr = KV_HEADS * GROUP
    gl.warp_specialize(
        [
            (_attend_half, (task, 0, QUERY_HEADS, GROUP, Q_TOKEN_STRIDE, Q_HEAD_STRIDE, TURNS)),
            (_attend_half, (task, 1, QUERY_HEADS, GROUP, Q_TOKEN_STRIDE, Q_HEAD_STRIDE, TURNS)),
            (_copy_steps, (keys, values, rings, table, end, context, kv_head * 2 * WIDTH, PAGE)),
        ],
        # Warps of the second and the third group, and registers of their threads. The first group is like the second.
        [4, 1],
        [240, 24],
    )


@gluon.jit
def _ring(OPERAND: gl.constexpr, SHARED: gl.constexpr, STAGES: gl.constexpr):
    """Shared memory for the keys or values of STAGES steps: (tiles, full, free).

    `tiles` are [2 STAGES, STEP, WIDTH], left and right of each stage. A phase of the barrier `full` [STAGES, 1] ends
    when a stage has been copied, one of `free` [STAGES, 1] when both halves have used it.
    """
    tiles = gl.allocate_shared_memory(OPERAND, [2 * STAGES, STEP, WIDTH], SHARED)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(free.index(stage), count=2)
    return tiles, full, free


@gluon.jit
def _stage(step, barriers):
    """The stage that a step uses, and the parity of the phase of its barriers that ends in that step."""
    STAGES: gl.constexpr = barriers.shape[0]
    return step % STAGES, step // STAGES & 1


@gluon.jit
def _copy_steps(keys, values, rings, table, end, context, column, PAGE: gl.constexpr):
    """Copy the keys and values of all steps before `end` to the rings, each as soon as its stage is free.

    `table` is the sequence's row of the block table, and `column` the first column of the head.
    """
    for start in range(0, end, STEP):
        _copy_step(keys, rings[0], table, start, context, column, PAGE)
        _copy_step(values, rings[1], table, start, context, column, PAGE)


@gluon.jit
def _copy_step(pool, ring, table, start, context, column, PAGE: gl.constexpr):
    """Copy the step that begins with the key `start`. Beyond the context it gets slots of any sequence."""
    tiles, full, free = ring
    stage, phase = _stage(start // STEP, full)
    mbarrier.wait(free.index(stage), phase ^ 1)
    mbarrier.expect(full.index(stage), 2 * STEP * WIDTH * BYTES)
    SLOTS: gl.constexpr = pool.block_shape[0]
    for part in gl.static_range(STEP // SLOTS):
        key = start + part * SLOTS
        block = gl.load(table + key // PAGE, mask=key < context, other=0)
        for side in gl.static_range(2):
            place = tiles.index(2 * stage + side).slice(part * SLOTS, SLOTS)
            _copy(pool, [block * PAGE + key % PAGE, column + side * WIDTH], full.index(stage), place)


@gluon.jit
def _attend_half(
    task,
    HALF: gl.constexpr,
    QUERY_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    Q_TOKEN_STRIDE: gl.constexpr,
    Q_HEAD_STRIDE: gl.constexpr,
    TURNS: gl.constexpr,
):
    """Attention of the PART rows of a half.

    `task` is what both halves are given: (output, queries, shared memory [4, PART, WIDTH] for queries, the rings of
    keys and values, the barriers of turns, at, span, scale), where `at` is (the program's first row, rows of the
    sequence, first token, its position, first query head), and `span` is (the first key that some row does not see, at
    a multiple of STEP, the first key that no row sees, the context).
    """
    out, q, queries, rings, turns, at, span, scale = task
    first_row, _, _, before, _ = at
    seen_by_all, end, context = span
    # A thread of BLOCKED has 16 neighbouring bytes, as copies want them. LOGITS and SUMS are the registers in which the
    # tensor cores leave their products.
    BLOCKED: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    LOGITS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, STEP, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])

    mine = (queries.index(2 * HALF), queries.index(2 * HALF + 1))
    token, head, real = _rows(at, HALF, GROUP, gl.SliceLayout(1, BLOCKED))  # [PART] each
    columns = gl.arange(0, WIDTH, gl.SliceLayout(0, BLOCKED))  # [WIDTH]
    q_rows = (q + token * Q_TOKEN_STRIDE + head * Q_HEAD_STRIDE)[:, None] + columns[None, :]  # [PART, WIDTH]
    mine[0].store(gl.load(q_rows, mask=real[:, None], other=0.0))
    mine[1].store(gl.load(q_rows + WIDTH, mask=real[:, None], other=0.0))
    fence_async_shared()

    positions = before + (first_row + HALF * PART + gl.arange(0, PART, gl.SliceLayout(1, LOGITS))) // GROUP  # [PART]
    greatest = gl.full([PART], LOWEST, gl.float32, gl.SliceLayout(1, LOGITS))  # [PART]
    total = gl.zeros([PART], gl.float32, gl.SliceLayout(1, LOGITS))  # [PART]
    left = gl.zeros([PART, WIDTH], gl.float32, SUMS)  # [PART, WIDTH]
    right = gl.zeros([PART, WIDTH], gl.float32, SUMS)  # [PART, WIDTH]
    if TURNS and HALF == 1:
        mbarrier.arrive(turns.index(0), count=1)

    logits = warpgroup_mma_wait(0, deps=[_start_logits(mine, rings[0], 0, LOGITS)])  # [PART, STEP]
    _release(rings[0], 0)
    logits = _masked(logits, 0, positions, LOGITS)
    weights, _, greatest, total = _softmax(logits, greatest, total, scale, queries.dtype, SUMS)
    state = (left, right, weights, greatest, total)
    state = _attend_steps(
        state, mine, rings, turns, positions, STEP, seen_by_all, scale, HALF, False, LOGITS, SUMS, TURNS
    )
    begin = gl.maximum(seen_by_all, STEP)
    state = _attend_steps(state, mine, rings, turns, positions, begin, end, scale, HALF, True, LOGITS, SUMS, TURNS)
    left, right, weights, greatest, total = state

    last = (end - 1) // STEP
    _clear_beyond(rings[1], last, context, BLOCKED)
    left, right = warpgroup_mma_wait(0, deps=_start_adding(left, right, weights, rings[1], last))
    factor = gl.where(total > 0, 1.0 / gl.where(total > 0, total, 1.0), 0.0)  # [PART]
    factor = gl.convert_layout(factor, gl.SliceLayout(1, SUMS))[:, None]  # [PART, 1]
    token, head, real = _rows(at, HALF, GROUP, gl.SliceLayout(1, SUMS))  # [PART] each
    columns = gl.arange(0, WIDTH, gl.SliceLayout(0, SUMS))  # [WIDTH]
    out_rows = (out + (token * QUERY_HEADS + head) * 2 * WIDTH)[:, None] + columns[None, :]  # [PART, WIDTH]
    gl.store(out_rows, (left * factor).to(queries.dtype), mask=real[:, None])
    gl.store(out_rows + WIDTH, (right * factor).to(queries.dtype), mask=real[:, None])


@gluon.jit
def _rows(at, HALF: gl.constexpr, GROUP: gl.constexpr, LAYOUT: gl.constexpr):
    """The token and the query head of each row of a half, and whether the sequence has it: [PART] each."""
    first_row, all_rows, first_token, _, first_head = at
    row = first_row + HALF * PART + gl.arange(0, PART, LAYOUT)  # [PART]
    return (first_token + row // GROUP).to(gl.int64), first_head + row % GROUP, row < all_rows


@gluon.jit
def _attend_steps(
    state,
    queries,
    rings,
    turns,
    positions,
    begin,
    end,
    scale,
    HALF: gl.constexpr,
    MASKED: gl.constexpr,
    LOGITS: gl.constexpr,
    SUMS: gl.constexpr,
    TURNS: gl.constexpr,
):
    """Attend to the keys `begin` to `end` - 1, and add the values of the step before each of their steps.

    `state` is (sums [PART, WIDTH] twice, the last step's weights [PART, STEP], greatest logit [PART], total [PART]),
    before and after. The values of the last step are not added yet. Sums and weights are relative to the greatest
    logit.
    """
    left, right, weights, greatest, total = state
    for start in range(begin, end, STEP):
        step = start // STEP
        # The half whose turn it is has the tensor cores until it has started all products of the step.
        if TURNS:
            mbarrier.wait(turns.index(HALF), (step - 1) & 1)
        logits = _start_logits(queries, rings[0], step, LOGITS)
        left, right = _start_adding(left, right, weights, rings[1], step - 1)
        if TURNS:
            mbarrier.arrive(turns.index(1 - HALF), count=1)
        logits = warpgroup_mma_wait(2, deps=[logits])  # [PART, STEP]
        _release(rings[0], step)
        if MASKED:
            logits = _masked(logits, start, positions, LOGITS)
        weights, fade, greatest, total = _softmax(logits, greatest, total, scale, weights.dtype, SUMS)
        left, right = warpgroup_mma_wait(0, deps=[left, right])  # [PART, WIDTH] twice
        _release(rings[1], step - 1)
        left *= fade
        right *= fade
    return left, right, weights, greatest, total


@gluon.jit
def _start_logits(queries, ring, step, LOGITS: gl.constexpr):
    """Start the products [PART, STEP] of the queries [PART, WIDTH], twice, with the keys of `step`."""
    tiles, full, _ = ring
    stage, phase = _stage(step, full)
    mbarrier.wait(full.index(stage), phase)
    logits = gl.zeros([PART, STEP], gl.float32, LOGITS)  # [PART, STEP]
    logits = warpgroup_mma(queries[0], tiles.index(2 * stage).permute([1, 0]), logits, use_acc=False, is_async=True)
    return warpgroup_mma(queries[1], tiles.index(2 * stage + 1).permute([1, 0]), logits, is_async=True)


@gluon.jit
def _start_adding(left, right, weights, ring, step):
    """Start adding the values of `step` with the weights [PART, STEP] to the sums [PART, WIDTH], left and right."""
    tiles, full, _ = ring
    stage, phase = _stage(step, full)
    mbarrier.wait(full.index(stage), phase)
    left = warpgroup_mma(weights, tiles.index(2 * stage), left, is_async=True)
    right = warpgroup_mma(weights, tiles.index(2 * stage + 1), right, is_async=True)
    return left, right


@gluon.jit
def _release(ring, step):
    """Let the stage of `step` be copied to again, once the other half has released it too."""
    _, _, free = ring
    stage, _ = _stage(step, free)
    mbarrier.arrive(free.index(stage), count=1)


@gluon.jit
def _clear_beyond(ring, step, context, BLOCKED: gl.constexpr):
    """Set the values of `step` that lie beyond the context to 0. Both halves do so, and write the same.

    Slots beyond the end of a sequence hold old or uninitialised data, and a weight of 0 times a NaN is a NaN.
    """
    tiles, full, _ = ring
    stage, phase = _stage(step, full)
    mbarrier.wait(full.index(stage), phase)
    if (step + 1) * STEP > context:
        keys = step * STEP + gl.arange(0, STEP, gl.SliceLayout(1, BLOCKED))  # [STEP]
        for side in gl.static_range(2):
            tile = tiles.index(2 * stage + side)
            tile.store(gl.where((keys < context)[:, None], tile.load(BLOCKED), 0.0))
        fence_async_shared()


@gluon.jit
def _masked(logits, start, positions, LOGITS: gl.constexpr):
    """The logits [PART, STEP] of the keys from `start` on; -inf where a row does not see a key."""
    keys = start + gl.arange(0, STEP, gl.SliceLayout(0, LOGITS))  # [STEP]
    return gl.where(positions[:, None] >= keys[None, :], logits, float("-inf"))


@gluon.jit
def _softmax(logits, greatest, total, scale, OPERAND: gl.constexpr, SUMS: gl.constexpr):
    """Update the softmax's greatest logit [PART] and total [PART] with the logits [PART, STEP] of a step.

    Returns (the weights [PART, STEP] as an operand, the factor [PART, 1] that earlier sums are to be multiplied by,
    greatest logit, total).
    """
    top = gl.maximum(greatest, gl.max(logits, 1) * scale)  # [PART]
    weights = gl.exp2(gl.fma(logits, scale, -top[:, None]))  # [PART, STEP]
    fade = gl.exp2(greatest - top)  # [PART]
    total = gl.fma(total, fade, gl.sum(weights, 1))  # [PART]
    weights = gl.convert_layout(weights.to(OPERAND), gl.DotOperandLayout(0, SUMS, 2))  # [PART, STEP]
    return weights, gl.convert_layout(fade, gl.SliceLayout(1, SUMS))[:, None], top, total
