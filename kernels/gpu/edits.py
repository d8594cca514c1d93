"""Edits of logits before the draw: penalties for tokens that came up, which are counted on the device, and masks."""

import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import Penalties, TokenCounts
from kernels.gpu.launch import Launcher

TOKENS = 1024
"""Counted tokens that a program looks at in one go."""
LOGITS = 4096
"""Logits that a program restricts."""


def count_tokens(launch: Launcher, counts: TokenCounts, requests: Tensor, tokens: Tensor) -> None:
    """See `Backend.count_tokens`."""
    launch(
        count_rows,
        (len(requests),),
        counts.tokens,
        counts.times,
        counts.lengths,
        requests,
        tokens,
        counts.tokens.stride(0),
        num_warps=4,
        num_stages=1,
        BLOCK=TOKENS,
    )


def penalise(launch: Launcher, logits: Tensor, counts: TokenCounts, penalties: Penalties) -> None:
    """See `Backend.penalise`."""
    launch(
        penalise_rows,
        (len(penalties.rows), triton.cdiv(counts.tokens.shape[1], TOKENS)),
        logits,
        counts.tokens,
        counts.times,
        counts.lengths,
        penalties.rows,
        penalties.requests,
        penalties.repetition,
        penalties.presence,
        penalties.frequency,
        logits.stride(0),
        counts.tokens.stride(0),
        num_warps=4,
        num_stages=1,
        BLOCK=TOKENS,
    )


def restrict(launch: Launcher, logits: Tensor, rows: Tensor, masks: Tensor) -> None:
    """See `Backend.restrict`."""
    vocab = logits.shape[1]
    launch(
        restrict_rows,
        (len(rows), triton.cdiv(vocab, LOGITS)),
        logits,
        rows,
        masks,
        vocab,
        logits.stride(0),
        masks.stride(0),
        num_warps=8,
        num_stages=1,
        BLOCK=LOGITS,
    )


@triton.jit
def count_rows(tokens, times, lengths, requests, drawn, stride, BLOCK: tl.constexpr):
    """Count the token `drawn[i]` in row `requests[i]` of a `TokenCounts`, unless it is negative.

    The grid is (drawn tokens,); the rows of `tokens` and `times` are `stride` apart, and no two programs have one row.
    """
    draw = tl.program_id(0)
    request = tl.load(requests + draw)
    token = tl.load(drawn + draw).to(tl.int32)
    length = tl.load(lengths + request)
    row = request * stride
    found = -1
    for begin in range(0, length, BLOCK):
        at = begin + tl.arange(0, BLOCK)  # [BLOCK]
        known = tl.load(tokens + row + at, mask=at < length, other=-1)  # [BLOCK]
        found = tl.maximum(found, tl.max(tl.where(known == token, at, -1), 0))
    if token >= 0:
        place = tl.where(found < 0, length, found)
        before = tl.load(times + row + place, mask=found >= 0, other=0)
        tl.store(tokens + row + place, token)
        tl.store(times + row + place, before + 1)
        tl.store(lengths + request, tl.where(found < 0, length + 1, length))


@triton.jit
def penalise_rows(
    logits,
    tokens,
    times,
    lengths,
    rows,
    requests,
    repetition,
    presence,
    frequency,
    logits_stride,
    stride,
    BLOCK: tl.constexpr,
):
    """Penalise row `rows[i]` of `logits` for the tokens in row `requests[i]` of a `TokenCounts`.

    The grid is (penalised rows, blocks of BLOCK counted tokens). Rows of `logits` are `logits_stride` apart, those of
    `tokens` and `times` `stride`. A row's tokens are distinct, so that no two programs edit one logit.
    """
    draw = tl.program_id(0)
    request = tl.load(requests + draw)
    length = tl.load(lengths + request)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = at < length  # [BLOCK]
    token = tl.load(tokens + request * stride + at, mask=inside, other=0)  # [BLOCK]
    count = tl.load(times + request * stride + at, mask=inside, other=0)  # [BLOCK]
    place = logits + tl.load(rows + draw) * logits_stride + token  # [BLOCK]
    score = tl.load(place, mask=inside, other=0.0)  # [BLOCK]
    factor = tl.load(repetition + draw)
    score = tl.where(score > 0.0, tl.math.div_rn(score, factor), score * factor)
    score -= tl.where(count > 0, tl.load(presence + draw), 0.0)
    score -= tl.load(frequency + draw) * count
    tl.store(place, score, mask=inside)


@triton.jit
def restrict_rows(logits, rows, masks, vocab, logits_stride, masks_stride, BLOCK: tl.constexpr):
    """Write -inf to the logits of row `rows[i]` whose bits in row i of `masks` are 0; bit 0 of byte 0 is the first.

    The grid is (restricted rows, blocks of BLOCK logits), `vocab` is the length of a row of `logits`. Rows of `logits`
    are `logits_stride` apart, those of `masks` `masks_stride`.
    """
    draw = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = token < vocab  # [BLOCK]
    octet = tl.load(masks + draw * masks_stride + token // 8, mask=inside, other=0)  # [BLOCK]
    banned = (octet.to(tl.int32) >> (token % 8)) & 1 == 0  # [BLOCK]
    tl.store(logits + tl.load(rows + draw) * logits_stride + token, float("-inf"), mask=inside & banned)
