"""What attention does with one tile of the paged cache, whoever asks: what the prefill and the decode kernel share.

    logits[i, j] = log2(e) * (cap(scale * q[i] . k[j]) + slope * (j - i)), -inf where query i does not see key j
    out[i] = sum_j 2^logits[i, j] v[j] / sum_j 2^logits[i, j]

A head's dimensions stand in two parts, HEAD of them and TAIL more, each a power of two, or in one (TAIL is 0), so that
80, 96 and 192 are not padded to the next power of two: what is as wide as a head is a tuple of one tile or two.
Nothing here knows which queries meet which keys, or why.
"""

import triton
import triton.language as tl

from kernels.gpu.fp8 import decode_e4m3

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
"""Stands for the greatest of no logits. It is finite, so that a row which has seen no key yet is no special case: under
the mask is 2^(-inf - LOWEST) = 0, never 2^(-inf + inf)."""


@triton.jit
def softmax_start(sinks, heads, real, M: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr):
    """What `attend_keys` folds keys into, before the first: (numerators, greatest logit, denominator) of M rows.

    A sink, `sinks` [heads] (None: there are none), is a logit of its own, whose value is 0.
    """
    if sinks is None:
        greatest = tl.full([M], LOWEST, tl.float32)
        total = tl.zeros([M], tl.float32)
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
):
    """Fold the keys `begin` (a multiple of BLOCK_N) to `end` - 1 of one sequence and one KV head into the softmax of M
    rows of queries, at `positions` [M].

    Without MASKED every row must see each of the keys. Whether a tile is masked changes no bit of what its visible keys
    add, and a tile of which a row sees nothing leaves the row as it was: what a row comes to depends on BLOCK_N, and on
    nothing of the rows beside it. Every multiplication that an addition follows is therefore a fused one by name, so
    that a compiler cannot fuse it in one of the two variants only.
    """
    # The cache blocks of the next tile are looked up a tile ahead: a copy whose address is being loaded in the same
    # iteration would be pipelined half as deep.
    pages = _pages(table, begin, context, PAGE, BLOCK_N)
    for start in range(begin, end, BLOCK_N):
        rows = _row_offsets(pages, start, PAGE, PAGE_STRIDE, TOKEN_STRIDE, BLOCK_N)
        pages = _pages(table, start + BLOCK_N, context, PAGE, BLOCK_N)
        key_positions = start + tl.arange(0, BLOCK_N)
        distance = positions[:, None] - key_positions[None, :]

        k = load_rows(keys + rows, None, HEAD, TAIL, OPERAND, NATIVE_FP8)
        logits = _dot_rows(q, k, TAIL)
        # Alone, the scale is left to be fused into the exponent.
        unit = scale
        if cap is not None or slopes is not None:
            logits = _bend(logits * scale, distance, cap, slopes)
            unit = 1.0
        owned = None
        if MASKED:
            visible = distance >= 0
            if window is not None:
                visible &= distance < window
            logits = tl.where(visible, logits, float("-inf"))
            # What lies in a block beyond its sequence is not ours, and zero times a NaN is a NaN.
            owned = key_positions < context
        v = load_rows(values + rows, owned, HEAD, TAIL, OPERAND, NATIVE_FP8)

        top = tl.maximum(greatest, tl.max(logits, 1) * unit)
        weights = tl.exp2(tl.fma(logits, unit, -top[:, None]))
        fade = tl.exp2(greatest - top)
        sums = _add_weighted(sums, fade, weights.to(OPERAND), v, TAIL)
        total = tl.fma(total, fade, tl.sum(weights, 1))
        greatest = top
    return sums, greatest, total


@triton.jit
def load_rows(rows, real, HEAD: tl.constexpr, TAIL: tl.constexpr, OPERAND: tl.constexpr, NATIVE_FP8: tl.constexpr):
    """Of the rows that `rows` [N] points at, as a dot takes them; those not `real` [N] are 0 (None: all are real)."""
    mask = None if real is None else real[:, None]
    other = None if real is None else 0
    head = tl.load(rows[:, None] + tl.arange(0, HEAD)[None, :], mask=mask, other=other)
    if TAIL:
        tail = tl.load(rows[:, None] + HEAD + tl.arange(0, TAIL)[None, :], mask=mask, other=other)
        return _operand(head, OPERAND, NATIVE_FP8), _operand(tail, OPERAND, NATIVE_FP8)
    else:
        return (_operand(head, OPERAND, NATIVE_FP8),)


@triton.jit
def store_rows(rows, real, sums, factors, HEAD: tl.constexpr, TAIL: tl.constexpr):
    """`sums` times `factors` [M] to where `rows` [M] points, where `real` [M]."""
    dtype = rows.dtype.element_ty
    head = rows[:, None] + tl.arange(0, HEAD)[None, :]
    tl.store(head, (sums[0] * factors[:, None]).to(dtype), mask=real[:, None])
    if TAIL:
        tail = rows[:, None] + HEAD + tl.arange(0, TAIL)[None, :]
        tl.store(tail, (sums[1] * factors[:, None]).to(dtype), mask=real[:, None])


@triton.jit
def _operand(tile, OPERAND: tl.constexpr, NATIVE_FP8: tl.constexpr):
    if tile.dtype == tl.uint8:
        return decode_e4m3(tile, NATIVE_FP8).to(OPERAND)
    else:
        return tile.to(OPERAND)


@triton.jit
def _pages(table, start, context, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """The cache block of each of a tile's keys, or of all, where tiles do not cross blocks; 0 beyond the context."""
    if PAGE % BLOCK_N == 0:
        return tl.load(table + start // PAGE, mask=start < context, other=0)
    else:
        at = start + tl.arange(0, BLOCK_N)
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
    """Where the rows of a tile's keys stand, [BLOCK_N], in 64 bits: a cache has more elements than 32 can count."""
    tile = tl.arange(0, BLOCK_N)
    if PAGE % BLOCK_N == 0:
        return pages.to(tl.int64) * PAGE_STRIDE + start % PAGE * TOKEN_STRIDE + tile * TOKEN_STRIDE
    else:
        return pages.to(tl.int64) * PAGE_STRIDE + (start + tile) % PAGE * TOKEN_STRIDE


@triton.jit
def _dot_rows(q, k, TAIL: tl.constexpr):
    """[M, N] of M rows and N rows."""
    dots = tl.dot(q[0], tl.trans(k[0]), input_precision="ieee", out_dtype=tl.float32)
    if TAIL:
        dots = tl.dot(q[1], tl.trans(k[1]), dots, input_precision="ieee", out_dtype=tl.float32)
    return dots


@triton.jit
def _bend(logits, distance, cap, slopes):
    """Softcap, cap * tanh(x / cap), and ALiBi (Press et al., arXiv 2108.12409).

    With a cap, `logits` are 2 log2(e) x / cap, and `cap` is in units of log 2: tanh(y) = 1 - 2 / (e^2y + 1).
    """
    if cap is not None:
        logits = tl.fma(1.0 / (tl.exp2(logits) + 1.0), -2.0 * cap, cap)
    if slopes is not None:
        logits = tl.fma(-slopes[:, None], distance.to(tl.float32), logits)
    return logits


@triton.jit
def _add_weighted(sums, fade, weights, v, TAIL: tl.constexpr):
    """Sums * fade + weights @ v."""
    head = tl.dot(weights, v[0], sums[0] * fade[:, None], input_precision="ieee", out_dtype=tl.float32)
    if TAIL:
        tail = tl.dot(weights, v[1], sums[1] * fade[:, None], input_precision="ieee", out_dtype=tl.float32)
        return head, tail
    else:
        return (head,)
