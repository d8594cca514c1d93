"""Drawing tokens on the GPU: filters and race without a sort, a normalised row or a wait for the host.

`kernels/reference_sampling.py` defines the result; the noise here has the same bits. Nothing here knows of requests.

Two kernels, whose grids depend on the batch's shape alone. The first goes over the slices of each row: it races all
tokens of a slice, and stores the highest logit of each of its strips. In the second, a row ends in one of three ways:

- without a filter, the token is the best of the slices' winners;
- with a small top-k or a strict min-p, the strips' highest logits tell which few strips hold the kept tokens. One
  program reads those and settles the row in registers;
- otherwise several programs weigh, for some tokens at once, what stands above each: for the row's winner, for the best
  of the slices' winners above it, and so on. The one that finishes last finds the first of them that the filters keep.
  It is the winner under the filters, unless a slice hides a better token below a winner that was rejected; such slices
  are few, and are raced again.

Anything left over, such as thousands of tokens that tie, is settled by one program over the whole row; that is slower.

Rows are cut into slices and strips of a fixed size and sums have a fixed order, so a row's token depends on that row
alone.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import SamplingBatch
from kernels.gpu.arrival import last_to_arrive
from kernels.gpu.filters import (
    HIGHEST,
    INFINITE,
    LOWEST,
    bound_of_top_k,
    collect,
    leads,
    race_slice,
    relative_weights,
    settle,
    settle_few,
    standing,
    survey,
    weigh_above,
)
from kernels.gpu.launch import Launcher
from kernels.gpu.noise import exponentials, stream_key, uniforms

SLICE = 2048
"""Logits in a slice: enough to hide memory latency, and few enough that later rounds can skip most slices of a row."""

ROOM = 64
"""The least number of slices that each row of the intermediate results has room for. Vocabularies up to 2^17 thus share
one compiled variant of each kernel, and the rows have the same alignment in batches of any size."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """The sizes that change a draw's speed and not its result. All are powers of two."""

    slice: int = SLICE
    strip: int = 64
    """Logits in a strip, of which the highest is stored."""
    slices_a_program: int = 4
    """Slices that a program weighs tokens in."""
    pivots: int = 8
    """Tokens that are weighed at once; also the thresholds in a pass of the search for the k-th largest logit."""
    few: int = 1024
    """The most strips that one program reads, and the largest top-k for which it tries to."""
    candidates: int = 2048
    """The most tokens that are settled in registers."""
    race_warps: int = 8
    draw_warps: int = 8


def sample(launch: Launcher, logits: Tensor, batch: SamplingBatch, tuning: Tuning | None = None) -> Tensor:
    """See `Backend.sample`: a token, int64 [rows], for each row of `logits`, [rows, vocab] float32."""
    sizes = tuning or Tuning(SLICE)
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows == 0:
        return tokens
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    slices = triton.cdiv(vocab, sizes.slice)
    room = max(ROOM, triton.next_power_of_2(slices))
    strip = min(sizes.strip, sizes.slice)
    strips = room * sizes.slice // strip
    crests, holding = _floats(logits, rows, strips), _integers(logits, rows, strips)
    peaks, masses, scores = _floats(logits, 3, rows, room).unbind()
    winners, arrivals = _integers(logits, rows, room), _integers(logits, rows)
    launch(
        race_slices,
        (rows, slices),
        logits,
        batch.temperature,
        batch.top_k,
        batch.seed,
        batch.counter,
        crests,
        peaks,
        masses,
        scores,
        winners,
        arrivals,
        logits.stride(0),
        vocab,
        num_warps=sizes.race_warps,
        num_stages=1,
        SLICE=sizes.slice,
        STRIP=strip,
        ROOM=room,
        FEW=sizes.few,
    )
    programs = triton.cdiv(slices, sizes.slices_a_program)
    weighings = max(1, room // sizes.slices_a_program)
    launch(
        draw_rows,
        (rows, programs),
        logits,
        batch.temperature,
        batch.top_k,
        batch.top_p,
        batch.min_p,
        batch.seed,
        batch.counter,
        crests,
        peaks,
        masses,
        scores,
        winners,
        arrivals,
        holding,
        _integers(logits, rows, sizes.candidates),
        _integers(logits, rows, weighings, sizes.pivots),
        torch.empty(rows, weighings, sizes.pivots, dtype=torch.float64, device=logits.device),
        tokens,
        logits.stride(0),
        vocab,
        num_warps=sizes.draw_warps,
        num_stages=1,
        SLICE=sizes.slice,
        STRIP=strip,
        ROOM=room,
        SLICES=sizes.slices_a_program,
        WEIGHINGS=weighings,
        PIVOTS=sizes.pivots,
        FEW=sizes.few,
        CANDIDATES=sizes.candidates,
        TILE=max(SLICE, strip),
        HIP=launch.target.backend == "hip",
    )
    return tokens


def _floats(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _integers(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device=like.device)


@triton.jit
def race_slices(
    logits,
    temperatures,
    top_ks,
    seeds,
    counters,
    crests,
    peaks,
    masses,
    scores,
    winners,
    arrivals,
    row_stride,
    vocab,
    SLICE: tl.constexpr,
    STRIP: tl.constexpr,
    ROOM: tl.constexpr,
    FEW: tl.constexpr,
):
    """`peak = max x`, `mass = sum w`, `score = max w / E` and `winner = argmax w / E` of each slice of each row.

    Here w = e^((x - peak) / T). If T = 0, w is 1 where x = peak and 0 elsewhere, and E is 1: the winner is the first of
    the highest logits. A NaN counts as +inf; both make a row invalid. A row with few tokens under its top-k does not
    race here, so only its peaks and crests are stored.

    The grid is (rows, slices). `crests` is [rows, ROOM * SLICE / STRIP] float32, the highest logit of each strip.
    `peaks`, `masses` and `scores` are [rows, ROOM] float32, `winners` [rows, ROOM] int32. `arrivals`, [rows] int32, is
    set to 0 for `draw_rows`.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    STRIPS: tl.constexpr = SLICE // STRIP
    tokens = part * SLICE + tl.arange(0, SLICE)  # [SLICE]
    x = tl.load(logits + row * row_stride + tokens, mask=tokens < vocab, other=float("-inf"))  # [SLICE]
    crest = tl.max(tl.reshape(tl.where(x == x, x, float("inf")), [STRIPS, STRIP]), 1)  # [STRIPS]
    peak = tl.max(crest)
    at = row * ROOM + part
    tl.store(crests + at * STRIPS + tl.arange(0, STRIPS), crest)
    tl.store(peaks + at, peak)
    tl.store(arrivals + row, 0, mask=part == 0)

    temperature = tl.load(temperatures + row)
    top_k = tl.load(top_ks + row)
    if (temperature == 0) | (top_k == 0) | (top_k > FEW):
        # Beside a peak that is not finite, the stored values never decide a row's winner, but they must be numbers.
        finite = tl.abs(peak) < float("inf")
        weights = relative_weights(tl.where(finite, x, 0.0), tl.where(finite, peak, 0.0), temperature)  # [SLICE]
        scored = weights  # [SLICE]
        if temperature > 0:
            key = stream_key(tl.load(seeds + row), tl.load(counters + row))
            scored = weights / exponentials(uniforms(key, tokens))
        score, place = tl.max(scored, 0, return_indices=True)
        tl.store(masses + at, tl.sum(weights))
        tl.store(scores + at, score)
        tl.store(winners + at, part * SLICE + place)


@triton.jit
def draw_rows(
    logits,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    seeds,
    counters,
    crests,
    peaks,
    masses,
    scores,
    winners,
    arrivals,
    strips,
    found,
    counts,
    sums,
    tokens,
    row_stride,
    vocab,
    SLICE: tl.constexpr,
    STRIP: tl.constexpr,
    ROOM: tl.constexpr,
    SLICES: tl.constexpr,
    WEIGHINGS: tl.constexpr,
    PIVOTS: tl.constexpr,
    FEW: tl.constexpr,
    CANDIDATES: tl.constexpr,
    TILE: tl.constexpr,
    HIP: tl.constexpr,
):
    """`token = argmax w / E` over the tokens that the filters keep, where w = e^((x - max x) / T), for each row.

    The grid is (rows, slices / SLICES, rounded up). `crests` to `arrivals` are the results of `race_slices`. `strips`,
    [rows, ROOM * SLICE / STRIP] int32, `found`, [rows, CANDIDATES] int32, `counts` and `sums`,
    [rows, WEIGHINGS, PIVOTS] int32 and float64, are scratch.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    peaks += row * ROOM
    slices = tl.cdiv(vocab, SLICE)
    part = tl.arange(0, ROOM)  # [ROOM]
    at = row * ROOM + part  # [ROOM]
    first = tl.program_id(1) == 0
    temperature = tl.load(temperatures + row)
    top_k = tl.load(top_ks + row)
    top_p = tl.load(top_ps + row)
    min_p = tl.load(min_ps + row)
    filtered = (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0))
    few = filtered & (top_k > 0) & (top_k <= FEW)
    weighed = filtered & (few == 0)
    # Only rows whose tokens may have to be weighed need more than one program.
    if first | weighed:
        slice_peaks = tl.load(peaks + part, mask=part < slices, other=float("-inf"))  # [ROOM]
        peak = tl.max(slice_peaks)
        valid = tl.abs(peak) < float("inf")
        token = tl.full([], -1, tl.int32)
        if valid & (few == 0):
            # Converts masses and scores from the slice's peak to the row's. The product's rounding error is harmless: a
            # token that may win has a high weight.
            scale = relative_weights(slice_peaks, peak, temperature)  # [ROOM]
            slice_scores = tl.load(scores + at, mask=part < slices, other=0.0) * scale  # [ROOM]
            token = tl.load(winners + row * ROOM + tl.argmax(slice_scores, 0))
        if valid & filtered:
            CRESTS: tl.constexpr = ROOM * SLICE // STRIP
            key = stream_key(tl.load(seeds + row), tl.load(counters + row))
            token = draw_filtered(
                logits,
                crests + row * CRESTS,
                peaks,
                masses + row * ROOM,
                scores + row * ROOM,
                winners + row * ROOM,
                arrivals + row,
                strips + row * CRESTS,
                found + row * CANDIDATES,
                counts + row * WEIGHINGS * PIVOTS,
                sums + row * WEIGHINGS * PIVOTS,
                vocab,
                peak,
                few,
                first,
                temperature,
                tl.where(top_k > 0, tl.minimum(top_k, vocab), vocab).to(tl.int32),
                tl.where(top_p < 1, top_p, float("inf")),
                tl.minimum(min_p, 1.0),  # The highest weight is 1, so this leaves at least one token.
                key,
                SLICE,
                STRIP,
                ROOM,
                SLICES,
                WEIGHINGS,
                PIVOTS,
                FEW,
                CANDIDATES,
                TILE,
                CRESTS,
                HIP,
            )
            tl.store(tokens + row, token.to(tl.int64), mask=token >= 0)
        elif first:
            tl.store(tokens + row, token.to(tl.int64))


@triton.jit
def draw_filtered(
    logits,
    crests,
    peaks,
    masses,
    scores,
    winners,
    arrivals,
    strips,
    found,
    counts,
    sums,
    vocab,
    peak,
    few,
    first,
    temperature,
    top_k,
    top_p,
    min_p,
    key,
    SLICE: tl.constexpr,
    STRIP: tl.constexpr,
    ROOM: tl.constexpr,
    SLICES: tl.constexpr,
    WEIGHINGS: tl.constexpr,
    PIVOTS: tl.constexpr,
    FEW: tl.constexpr,
    CANDIDATES: tl.constexpr,
    TILE: tl.constexpr,
    CRESTS: tl.constexpr,
    HIP: tl.constexpr,
):
    """The winner under the filters in one row, or -1 in a program that leaves it to another one.

    The pointers are to the row's part of what `draw_rows` is given. `few` is whether top-k keeps so few tokens that the
    row has not raced, `first` whether this is the first of the row's programs. The filters are as `kernels.gpu.filters`
    has them.
    """
    tested = (top_k < vocab) | (top_p < float("inf"))
    both = (top_k < vocab) & (top_p < float("inf"))
    total = tl.full([], 0, tl.float64)
    bound = tl.full([], INFINITE, tl.int64)  # No kept token stands below it.
    floor = bound  # Nor does the k-th largest logit stand below this.
    level = tl.full([], HIGHEST, tl.int64)  # The standing of the lowest token that is known to be kept.
    alone = few  # Whether the kept tokens lie in so few strips that one program reads them.
    mine = first
    if few:
        bound = bound_of_top_k(crests, vocab, top_k, peak, STRIP, CRESTS)
        floor = bound
    else:
        total = mass_of_row(peaks, masses, vocab, peak, temperature, SLICE, ROOM)
        if min_p > 0:
            alone = both == 0
            alone &= count_holding(crests, vocab, peak, temperature, min_p, STRIP, CRESTS) <= FEW
        if tested & (alone == 0):
            pivots = climb(
                logits, peaks, scores, winners, vocab, peak, temperature, min_p, SLICE, ROOM, PIVOTS
            )  # [PIVOTS]
            each = tl.arange(0, PIVOTS)  # [PIVOTS]
            leading = leads(logits, crests, tl.min(pivots), peak, STRIP, CRESTS)
            if leading == 0:
                begin = tl.program_id(1) * SLICES
                end = tl.minimum(begin + SLICES, tl.cdiv(vocab, SLICE))
                count, mass = weigh_above(
                    logits, peaks, vocab, pivots, peak, temperature, begin, end, SLICE, PIVOTS
                )  # [PIVOTS], [PIVOTS]
                at = tl.program_id(1) * PIVOTS + each  # [PIVOTS]
                tl.store(counts + at, count)
                tl.store(sums + at, mass)
                mine = last_to_arrive(arrivals, tl.num_programs(1), HIP)
            if mine:
                kept = (pivots == tl.min(pivots)) & leading  # [PIVOTS]
                if leading == 0:
                    program = tl.arange(0, WEIGHINGS)  # [WEIGHINGS]
                    at = program[:, None] * PIVOTS + each[None, :]  # [WEIGHINGS, PIVOTS]
                    stored = (program < tl.num_programs(1))[:, None]  # [WEIGHINGS, 1]
                    count = tl.sum(tl.load(counts + at, mask=stored, other=0), 0)  # [PIVOTS]
                    mass = tl.sum(tl.load(sums + at, mask=stored, other=0.0), 0)  # [PIVOTS]
                    # With a top-k, this share of the row's mass is more than top-p leaves above a kept token: what it
                    # rejects is rejected, and what it keeps is settled below.
                    kept = (count == 0) | ((count < top_k) & (mass < top_p * total))
                level = tl.min(tl.where(kept, pivots, HIGHEST))
                rejected = tl.max(tl.where((kept == 0) & (pivots < HIGHEST), pivots, INFINITE - 1))
                bound = rejected + 1
    token = tl.full([], -1, tl.int32)
    if mine:
        count = CANDIDATES + 1
        if alone | (tested & (level == HIGHEST) & (both == 0)):
            # A mass above some tokens needs all those above them, and with a top-k also those that min-p drops.
            least = tl.where(few, 0.0, min_p)
            count = collect(
                logits,
                crests,
                strips,
                found,
                vocab,
                bound,
                peak,
                temperature,
                least,
                STRIP,
                CRESTS,
                FEW,
                TILE,
                CANDIDATES,
            )
        if count <= CANDIDATES:
            token = settle_few(
                logits,
                found,
                count,
                vocab,
                bound,
                peak,
                total,
                temperature,
                top_k,
                top_p,
                min_p,
                key,
                CANDIDATES,
            )
        else:
            sure = few & False
            if few:
                _, total, token = survey(logits, peaks, vocab, LOWEST, peak, temperature, min_p, key, SLICE)
            else:
                token = race_again(
                    logits, peaks, scores, winners, vocab, bound - 1, peak, temperature, min_p, key, SLICE, ROOM
                )
                sure = (tested == 0) | ((both == 0) & (standing(tl.load(logits + token), token) >= level))
            if sure == 0:
                token = settle(
                    logits,
                    peaks,
                    vocab,
                    token,
                    peak,
                    total,
                    (floor >> 32).to(tl.int32),
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    key,
                    SLICE,
                    PIVOTS,
                )
    return token


@triton.jit
def mass_of_row(peaks, masses, vocab, peak, temperature, SLICE: tl.constexpr, ROOM: tl.constexpr):
    """The mass of a row that has raced, float64."""
    part = tl.arange(0, ROOM)  # [ROOM]
    real = part < tl.cdiv(vocab, SLICE)  # [ROOM]
    slice_peaks = tl.load(peaks + part, mask=real, other=float("-inf"))  # [ROOM]
    slice_masses = tl.load(masses + part, mask=real, other=0.0)  # [ROOM]
    return tl.sum((slice_masses * relative_weights(slice_peaks, peak, temperature)).to(tl.float64))


@triton.jit
def count_holding(crests, vocab, peak, temperature, min_p, STRIP: tl.constexpr, CRESTS: tl.constexpr):
    """The number of strips that hold a token with w >= `min_p`, which is above 0."""
    strip = tl.arange(0, CRESTS)  # [CRESTS]
    crest = tl.load(crests + strip, mask=strip * STRIP < vocab, other=float("-inf"))  # [CRESTS]
    return tl.sum((relative_weights(crest, peak, temperature) >= min_p).to(tl.int32))


@triton.jit
def winners_of_slices(
    logits, peaks, scores, winners, vocab, peak, temperature, min_p, SLICE: tl.constexpr, ROOM: tl.constexpr
):
    """(standing, score) of the winner of each slice, [ROOM]; the score is 0 if min-p drops that token."""
    part = tl.arange(0, ROOM)  # [ROOM]
    real = part < tl.cdiv(vocab, SLICE)  # [ROOM]
    slice_peaks = tl.load(peaks + part, mask=real, other=float("-inf"))  # [ROOM]
    score = tl.load(scores + part, mask=real, other=0.0) * relative_weights(slice_peaks, peak, temperature)  # [ROOM]
    token = tl.load(winners + part, mask=real, other=0)  # [ROOM]
    x = tl.load(logits + token, mask=real, other=float("-inf"))  # [ROOM]
    return standing(x, token), tl.where(relative_weights(x, peak, temperature) >= min_p, score, 0.0)


@triton.jit
def climb(
    logits,
    peaks,
    scores,
    winners,
    vocab,
    peak,
    temperature,
    min_p,
    SLICE: tl.constexpr,
    ROOM: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Standings [PIVOTS] of slices' winners: that of the best, of the best above it, of the best above that, and so on.

    They ascend; beyond the last one the standing is HIGHEST.
    """
    standings, score = winners_of_slices(
        logits, peaks, scores, winners, vocab, peak, temperature, min_p, SLICE, ROOM
    )  # [ROOM], [ROOM]
    part = tl.arange(0, ROOM)  # [ROOM]
    each = tl.arange(0, PIVOTS)  # [PIVOTS]
    pivots = tl.full([PIVOTS], HIGHEST, tl.int64)  # [PIVOTS]
    level = tl.full([], LOWEST, tl.int64)
    for step in range(PIVOTS):
        best, place = tl.max(tl.where(standings > level, score, 0.0), 0, return_indices=True)
        level = tl.where(best > 0, tl.sum(tl.where(part == place, standings, 0)), HIGHEST)
        pivots = tl.where(each == step, level, pivots)
    return pivots


@triton.jit
def race_again(
    logits,
    peaks,
    scores,
    winners,
    vocab,
    bound,
    peak,
    temperature,
    min_p,
    key,
    SLICE: tl.constexpr,
    ROOM: tl.constexpr,
):
    """The winner among the tokens of a row that stand above `bound` and have w >= `min_p`.

    Where a slice's winner is one of them, it is that of the slice. Where it is not, its score bounds those of the
    slice's other tokens, so that only slices with a better one than the best found are raced again.
    """
    part = tl.arange(0, ROOM)  # [ROOM]
    real = part < tl.cdiv(vocab, SLICE)  # [ROOM]
    standings, score = winners_of_slices(
        logits, peaks, scores, winners, vocab, peak, temperature, min_p, SLICE, ROOM
    )  # [ROOM], [ROOM]
    known = tl.where(standings > bound, score, 0.0)  # [ROOM]
    best, place = tl.max(known, 0, return_indices=True)
    token = tl.load(winners + place)
    slice_peaks = tl.load(peaks + part, mask=real, other=float("-inf"))  # [ROOM]
    highest = relative_weights(slice_peaks, peak, temperature)  # [ROOM]
    hidden = tl.load(scores + part, mask=real, other=0.0) * highest  # [ROOM]
    hidden = tl.where((known == 0) & (standing(slice_peaks, part * SLICE) > bound) & (highest >= min_p), hidden, 0.0)
    while tl.max(hidden) > best:
        at = tl.argmax(hidden, 0)
        _, _, found, winner = race_slice(logits, at, vocab, bound, peak, temperature, min_p, key, SLICE)
        token = tl.where(found > best, winner, token)
        best = tl.maximum(best, found)
        hidden = tl.where(part == at, 0.0, hidden)
    return token
