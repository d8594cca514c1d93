"""Attention of a tile of queries over tiles of the paged cache, shared by the prefill and the decode kernel.

    logits[i, j] = log2(e) * (cap(scale * q[i] . k[j]) + slope * (j - i)), -inf where query i does not see key j
    out[i] = sum_j 2^logits[i, j] v[j] / sum_j 2^logits[i, j]

The softmax is computed online, key tile by key tile (FlashAttention: Dao et al., arXiv 2205.14135).

Triton's tiles are powers of two. To avoid padding heads of 80, 96 and 192 dimensions to the next one, a head is cut
into HEAD dimensions and TAIL more, both powers of two. A tile as wide as a head is therefore a tuple of two tiles,
[M, HEAD] and [M, TAIL], or of one if TAIL is 0. In shapes below, M is the number of query rows of the caller.
"""

import triton
import triton.language as tl

from kernels.gpu.fp8 import decode_e4m3, decode_e4m3_pairs

HEAD_PARTS = {
    16: (16, 0),
    32: (32, 0),
    64: (64, 0),
    80: (64, 16),
    96: (64, 32),
    128: (128, 0),
    192: (128, 64),
    256: (256, 0),
}
"""head_dim -> (HEAD, TAIL)."""

LOG2_E = tl.constexpr(1.4426950408889634)

LOWEST = tl.constexpr(-1.0e38)
"""The initial value of the greatest logit. It is finite, so that rows without a visible key need no special case: a
masked logit gives 2^(-inf - LOWEST) = 0, whereas 2^(-inf + inf) would be NaN."""


@triton.jit
def softmax_start(sinks, heads, real, M: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr):
    """The softmax state of M rows before the first key: (numerators, greatest logit, denominator).

    Numerators are a tuple of [M, HEAD] and, if TAIL is not 0, [M, TAIL]; the others are [M]. All are float32.
    `attend_keys` updates the state. `sinks` [heads] are logits without a value, one for each head, or None. `heads` [M]
    is each row's query head.
    """
    if sinks is None:
        greatest = tl.full([M], LOWEST, tl.float32)  # [M]
        total = tl.zeros([M], tl.float32)  # [M]
    else:
        greatest = tl.load(sinks + heads, mask=real, other=0.0) * LOG2_E
        total = tl.full([M], 1.0, tl.float32)
    if TAIL:
        return (tl.zeros([M, HEAD], tl.float32), tl.zeros([M, TAIL], tl.float32)), greatest, total
    else:
        return (tl.zeros([M, HEAD], tl.float32),), greatest, total


@triton.jit
def attend_keys(
    sums,
    greatest,
    total,
    q,
    keys,
    values,
    table,
    begin,
    end,
    context,
    positions,
    scale,
    cap,
    slopes,
    window,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    TOKEN_STRIDE: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    OPERAND: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
    PAIRED: tl.constexpr = False,
):
    """Update the softmax state (`sums`, `greatest`, `total`) of M rows with the keys `begin` to `end` - 1; return it.

    The keys belong to one sequence and one KV head, and `begin` is a multiple of BLOCK_N. `q` is a tuple of [M, HEAD]
    and [M, TAIL], `positions` [M] are the rows' positions, `table` is the sequence's row of the block table, and
    `context` its length. `slopes` is [M] or None. `scale` and `cap` include log2(e), and are those that `_bend` needs
    if there is a cap.

    Without MASKED, every row must see all the keys. MASKED changes no bit of the contribution of a visible key, and a
    tile without a visible key leaves a row unchanged. A row's result therefore depends on BLOCK_N, but not on other
    rows. For this, each multiplication that is followed by an addition is an explicit fma: otherwise the compiler might
    fuse it in only one of the two variants.
    """
    # Cache blocks are looked up one tile ahead. If a copy's address were loaded in the same iteration, the compiler
    # would pipeline the copy only half as deep.
    pages = _pages(table, begin, context, PAGE, BLOCK_N)  # [BLOCK_N], or a scalar.
    for start in range(begin, end, BLOCK_N):
        rows = _row_offsets(pages, start, PAGE, PAGE_STRIDE, TOKEN_STRIDE, BLOCK_N)  # [BLOCK_N]
        pages = _pages(table, start + BLOCK_N, context, PAGE, BLOCK_N)
        key_positions = start + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        distance = positions[:, None] - key_positions[None, :]  # [M, BLOCK_N]

        k = load_rows(keys + rows, None, HEAD, TAIL, OPERAND, NATIVE_FP8)  # [BLOCK_N, HEAD], [BLOCK_N, TAIL]
        logits = _dot_rows(q, k, TAIL)  # [M, BLOCK_N]
        # A scale without cap and slopes is applied later, in the exponent's fma.
        late_scale = scale
        if cap is not None or slopes is not None:
            logits = _bend(logits * scale, distance, cap, slopes)
            late_scale = 1.0
        owned = None
        if MASKED:
            visible = distance >= 0  # [M, BLOCK_N]
            if window is not None:
                visible &= distance < window
            logits = tl.where(visible, logits, float("-inf"))
            # Slots beyond the end of a sequence hold old or uninitialised data, and a weight of 0 times a NaN is a NaN.
            owned = key_positions < context  # [BLOCK_N]
        if PAIRED:
            v = load_pairs(values + rows, owned, HEAD, OPERAND, NATIVE_FP8)  # [BLOCK_N, HEAD / 2] twice
        else:
            v = load_rows(values + rows, owned, HEAD, TAIL, OPERAND, NATIVE_FP8)  # [BLOCK_N, HEAD], [BLOCK_N, TAIL]

        top = tl.maximum(greatest, tl.max(logits, 1) * late_scale)  # [M]
        weights = tl.exp2(tl.fma(logits, late_scale, -top[:, None]))  # [M, BLOCK_N]
        fade = tl.exp2(greatest - top)  # [M]
        sums = _add_weighted(sums, fade, weights.to(OPERAND), v, TAIL or PAIRED)
        total = tl.fma(total, fade, tl.sum(weights, 1))
        greatest = top
    return sums, greatest, total


@triton.jit
def masked_logits(
    q,
    keys,
    table,
    start,
    context,
    positions,
    scale,
    cap,
    slopes,
    window,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    TOKEN_STRIDE: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    OPERAND: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
):
    """The logits [M, BLOCK_N] of M rows and the keys `start` to `start` + BLOCK_N - 1; see `attend_keys`."""
    pages = _pages(table, start, context, PAGE, BLOCK_N)  # [BLOCK_N], or a scalar.
    rows = _row_offsets(pages, start, PAGE, PAGE_STRIDE, TOKEN_STRIDE, BLOCK_N)  # [BLOCK_N]
    k = load_rows(keys + rows, None, HEAD, TAIL, OPERAND, NATIVE_FP8)  # [BLOCK_N, HEAD], [BLOCK_N, TAIL]
    distance = positions[:, None] - (start + tl.arange(0, BLOCK_N))[None, :]  # [M, BLOCK_N]
    logits = _bend(_dot_rows(q, k, TAIL) * scale, distance, cap, slopes)  # [M, BLOCK_N]
    visible = distance >= 0  # [M, BLOCK_N]
    if window is not None:
        visible &= distance < window
    return tl.where(visible, logits, float("-inf"))


@triton.jit
def load_rows(rows, real, HEAD: tl.constexpr, TAIL: tl.constexpr, OPERAND: tl.constexpr, NATIVE_FP8: tl.constexpr):
    """The rows at the pointers `rows` [N], as operands of a dot: a tuple of [N, HEAD] and, if not 0, [N, TAIL].

    Rows that are not `real` [N] are 0; if `real` is None, all rows are loaded.
    """
    mask = None if real is None else real[:, None]  # [N, 1]
    other = None if real is None else 0
    head = tl.load(rows[:, None] + tl.arange(0, HEAD)[None, :], mask=mask, other=other)  # [N, HEAD]
    if TAIL:
        tail = tl.load(rows[:, None] + HEAD + tl.arange(0, TAIL)[None, :], mask=mask, other=other)  # [N, TAIL]
        return _operand(head, OPERAND, NATIVE_FP8), _operand(tail, OPERAND, NATIVE_FP8)
    else:
        return (_operand(head, OPERAND, NATIVE_FP8),)


@triton.jit
def load_pairs(rows, real, HEAD: tl.constexpr, OPERAND: tl.constexpr, NATIVE_FP8: tl.constexpr):
    """The even and the odd columns of the rows of e4m3 codes at the pointers `rows` [N]: two tiles [N, HEAD / 2].

    Rows that are not `real` [N] are 0; if `real` is None, all rows are loaded.
    """
    mask = None if real is None else real[:, None]  # [N, 1]
    other = None if real is None else 0
    pairs = rows.to(tl.pointer_type(tl.int16), bitcast=True)  # [N]
    codes = tl.load(pairs[:, None] + tl.arange(0, HEAD // 2)[None, :], mask=mask, other=other)  # [N, HEAD / 2]
    even, odd = decode_e4m3_pairs(codes, NATIVE_FP8)  # [N, HEAD / 2] twice
    return even.to(OPERAND), odd.to(OPERAND)


@triton.jit
def store_rows(rows, real, sums, factors, HEAD: tl.constexpr, TAIL: tl.constexpr):
    """Store sums * factors at the pointers `rows` [M] where `real` [M].

    `sums` is a tuple of [M, HEAD] and, if not 0, [M, TAIL]; `factors` is [M].
    """
    dtype = rows.dtype.element_ty
    head = rows[:, None] + tl.arange(0, HEAD)[None, :]  # [M, HEAD]
    tl.store(head, (sums[0] * factors[:, None]).to(dtype), mask=real[:, None])
    if TAIL:
        tail = rows[:, None] + HEAD + tl.arange(0, TAIL)[None, :]  # [M, TAIL]
        tl.store(tail, (sums[1] * factors[:, None]).to(dtype), mask=real[:, None])


@triton.jit
def _operand(tile, OPERAND: tl.constexpr, NATIVE_FP8: tl.constexpr):
    """`tile` converted to the dtype OPERAND; uint8 holds e4m3 codes."""
    if tile.dtype == tl.uint8:
        return decode_e4m3(tile, NATIVE_FP8).to(OPERAND)
    else:
        return tile.to(OPERAND)


@triton.jit
def _pages(table, start, context, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """The cache block of each key of a tile, [BLOCK_N]; 0 beyond the context.

    It is a scalar where PAGE is a multiple of BLOCK_N: then a tile never crosses blocks.
    """
    if PAGE % BLOCK_N == 0:
        return tl.load(table + start // PAGE, mask=start < context, other=0)
    else:
        at = start + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        return tl.load(table + at // PAGE, mask=at < context, other=0)


@triton.jit
def _row_offsets(
    pages,
    start,
    PAGE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    TOKEN_STRIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The offset of each key's row from the start of the cache, [BLOCK_N] int64, in elements.

    A cache may have more elements than 32 bits can count.
    """
    tile = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    if PAGE % BLOCK_N == 0:
        return pages.to(tl.int64) * PAGE_STRIDE + start % PAGE * TOKEN_STRIDE + tile * TOKEN_STRIDE
    else:
        return pages.to(tl.int64) * PAGE_STRIDE + (start + tile) % PAGE * TOKEN_STRIDE


@triton.jit
def _dot_rows(q, k, TAIL: tl.constexpr):
    """`q k^T`, [M, N] float32, for tuples of tiles with M and N rows."""
    dots = tl.dot(q[0], tl.trans(k[0]), input_precision="ieee", out_dtype=tl.float32)  # [M, N]
    if TAIL:
        dots = tl.dot(q[1], tl.trans(k[1]), dots, input_precision="ieee", out_dtype=tl.float32)
    return dots


@triton.jit
def _bend(logits, distance, cap, slopes):
    """Softcap, cap * tanh(x / cap), and ALiBi, -slope * distance (Press et al., arXiv 2108.12409), on [M, N] logits.

    tanh(y) = 1 - 2 / (e^2y + 1). With a cap, `logits` must therefore be 2 log2(e) x / cap, and `cap` must be multiplied
    by log2(e), which the result then is too.
    """
    if cap is not None:
        logits = tl.fma(1.0 / (tl.exp2(logits) + 1.0), -2.0 * cap, cap)
    if slopes is not None:
        logits = tl.fma(-slopes[:, None], distance.to(tl.float32), logits)
    return logits


@triton.jit
def _add_weighted(sums, fade, weights, v, TAIL: tl.constexpr):
    """`sums * fade + weights @ v`: a tuple of [M, HEAD] and [M, TAIL]; weights are [M, N] and `fade` is [M]."""
    head = tl.dot(weights, v[0], sums[0] * fade[:, None], input_precision="ieee", out_dtype=tl.float32)  # [M, HEAD]
    if TAIL:
        tail = tl.dot(weights, v[1], sums[1] * fade[:, None], input_precision="ieee", out_dtype=tl.float32)  # [M, TAIL]
        return head, tail
    else:
        return (head,)
