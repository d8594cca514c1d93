"""Drawing tokens on the GPU: filters and race without a sort, without a normalised row, without waiting for the host.

`kernels/reference_sampling.py` defines what is drawn; the noise here has the same bits. How requests come to their
parameters is not known here.

The winner of the race among all tokens is the winner among any part of them that holds it. So nobody looks for the
thresholds of the filters: each row races first, and then counts what lies above the winner. Where top-k, top-p and
min-p keep the winner it is the token drawn; where they do not, they keep nothing at or below its logit either, and
those above it race again. (FlashInfer rejects and draws again in this way, with new noise; here every round has the
same noise, so that the result is the one that the definition has.) The i-th likeliest token is the winner of any round
with a probability of at most 1 / i, so that at most 1 + ln(vocab) rounds are to be expected; most rows need one.

Rows are cut into slices of a fixed size, and sums go in a fixed order: a row's token depends on the row alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import SamplingBatch
from kernels.gpu.launch import Launcher

SLICE = 2048
"""Logits that one program holds at a time: enough to hide memory latency, and few enough to skip most of a row by."""

ROOM = 128
"""Slices that a row's intermediate results have room for, at least, so that vocabularies up to 2^18 share one variant
of each kernel, and batches of any size one alignment."""

PIVOTS = 8
"""Thresholds that the search for the k-th largest logit tries in one pass."""


def sample(launch: Launcher, logits: Tensor, batch: SamplingBatch) -> Tensor:
    """See `Backend.sample`: a token of each row of [rows, vocab] float32, int64 [rows]."""
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows == 0:
        return tokens
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    slices = triton.cdiv(vocab, SLICE)
    room = max(ROOM, triton.next_power_of_2(slices))
    peaks, masses, scores = torch.empty(3, rows, room, device=logits.device).unbind()
    winners = torch.empty(rows, room, dtype=torch.int32, device=logits.device)
    launch(
        race_slices,
        (rows, slices),
        logits,
        batch.temperature,
        batch.seed,
        batch.counter,
        peaks,
        masses,
        scores,
        winners,
        logits.stride(0),
        vocab,
        num_warps=8,
        num_stages=1,
        SLICE=SLICE,
        ROOM=room,
    )
    launch(
        draw_rows,
        (rows,),
        logits,
        batch.temperature,
        batch.top_k,
        batch.top_p,
        batch.min_p,
        batch.seed,
        batch.counter,
        peaks,
        masses,
        scores,
        winners,
        tokens,
        logits.stride(0),
        vocab,
        num_warps=8,
        num_stages=1,
        SLICE=SLICE,
        ROOM=room,
        PIVOTS=PIVOTS,
    )
    return tokens


@triton.jit
def race_slices(
    logits,
    temperatures,
    seeds,
    counters,
    peaks,
    masses,
    scores,
    winners,
    row_stride,
    vocab,
    SLICE: tl.constexpr,
    ROOM: tl.constexpr,
):
    """For a slice of a row, w = e^((x - m) / T): peak m = max x, mass = sum w, score = max w / E, winner = its argmax.

    At T = 0, w is 1 where x = m and 0 elsewhere, and E is 1: the winner is the first of the highest. A NaN counts as
    +inf, which no row may hold either.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    tokens = part * SLICE + tl.arange(0, SLICE)
    x = tl.load(logits + row * row_stride + tokens, mask=tokens < vocab, other=float("-inf"))
    peak = tl.max(tl.where(x == x, x, float("inf")))
    temperature = tl.load(temperatures + row)
    key = stream_key(tl.load(seeds + row), tl.load(counters + row))

    # What is stored beside a peak that is not finite is never a row's winner, but it has to be a number.
    finite = tl.abs(peak) < float("inf")
    weights = relative_weights(tl.where(finite, x, 0.0), tl.where(finite, peak, 0.0), temperature)
    scored = weights
    if temperature > 0:
        scored = weights / exponentials(uniforms(key, tokens))
    score, place = tl.max(scored, 0, return_indices=True)
    at = row * ROOM + part
    tl.store(peaks + at, peak)
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
    peaks,
    masses,
    scores,
    winners,
    tokens,
    row_stride,
    vocab,
    SLICE: tl.constexpr,
    ROOM: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """The token of a row: argmax w / E over the tokens that are kept, w = e^((x - max x) / T).

    A token is kept if, with n tokens of mass M = sum w strictly above its logit,
    n < k and M < p * (the mass of the k likeliest) and w >= min_p; one with n = 0 always is.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    peaks += row * ROOM
    slices = tl.cdiv(vocab, SLICE)
    part = tl.arange(0, ROOM)
    at = row * ROOM + part
    slice_peaks = tl.load(peaks + part, mask=part < slices, other=float("-inf"))
    peak = tl.max(slice_peaks)
    token = tl.full([], -1, tl.int32)
    if tl.abs(peak) < float("inf"):
        temperature = tl.load(temperatures + row)
        # From each slice's own peak to the row's. The product is as good as the weight itself: whoever may win is high.
        scale = relative_weights(slice_peaks, peak, temperature)
        slice_masses = tl.load(masses + at, mask=part < slices, other=0.0)
        slice_scores = tl.load(scores + at, mask=part < slices, other=0.0) * scale
        token = tl.load(winners + row * ROOM + tl.argmax(slice_scores, 0))

        top_k = tl.minimum(tl.load(top_ks + row), vocab).to(tl.int32)
        top_p = tl.load(top_ps + row)
        min_p = tl.load(min_ps + row)
        if (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0)):
            key = stream_key(tl.load(seeds + row), tl.load(counters + row))
            top_k = tl.where(top_k > 0, top_k, vocab)
            top_p = tl.where(top_p < 1, top_p, float("inf"))
            mass = tl.sum((slice_masses * scale).to(tl.float64))
            # At least as many logits as there are slices are as high as the lowest peak.
            lowest = tl.min(tl.where(part < slices, slice_peaks, peak))
            floor = rank(tl.where(top_k <= slices, lowest, float("-inf")))
            token = settle(
                logits,
                peaks,
                vocab,
                token,
                peak,
                mass,
                floor,
                temperature,
                top_k,
                top_p,
                min_p,
                key,
                SLICE=SLICE,
                PIVOTS=PIVOTS,
            )
    tl.store(tokens + row, token.to(tl.int64))


@triton.jit
def settle(
    logits,
    peaks,
    vocab,
    token,
    peak,
    total,
    floor,
    temperature,
    top_k,
    top_p,
    min_p,
    key,
    SLICE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """The token that wins under the filters, from `token`, which wins without them; top_k is at most vocab.

    `total` is the row's mass; the k-th largest logit ranks at `floor` or above it.
    """
    # A round has a next one only if somebody stays in the race: the highest weight is 1.
    min_p = tl.minimum(min_p, 1.0)
    # Of top-p: exact at once without a top-k, and at most too high before the mass that top-k leaves is known.
    limit = top_p * total
    exact = top_k == vocab
    rejected = True
    while rejected:
        x = tl.load(logits + token)
        weight = relative_weights(x, peak, temperature)
        count, mass, runner_up = survey(logits, peaks, vocab, rank(x), peak, temperature, min_p, key, SLICE=SLICE)
        kept = (count < top_k) & (weight >= min_p) & (mass < limit)
        # What top-k leaves is `mass + weight` at the least: mostly that settles it without a search for the k-th one.
        if kept & (exact == 0) & (mass >= top_p * (mass + weight)):
            last = find_kth_largest(logits, peaks, vocab, top_k, floor, rank(x), SLICE=SLICE, PIVOTS=PIVOTS)
            _, total, _ = survey(logits, peaks, vocab, last - 1, peak, temperature, min_p, key, SLICE=SLICE)
            limit = top_p * total
            exact = True
            kept = mass < limit
        rejected = (count > 0) & (kept == 0)
        token = tl.where(rejected, runner_up, token)
    return token


@triton.jit
def survey(logits, peaks, vocab, bound, peak, temperature, min_p, key, SLICE: tl.constexpr):
    """Of the tokens that rank above `bound` in one row: count, mass = sum w, and argmax w / E over those of w >= min_p.

    Reads the slices that hold such tokens, and of the others only the peak. A slice's mass is a float32 sum, a tree's,
    and the row's a float64 one: over a large vocabulary, float32 would lose more than the last tokens' probabilities.
    """
    count = 0
    mass = tl.full([], 0, tl.float64)
    best = tl.full([], -1, tl.float32)
    winner = 0
    for part in range(tl.cdiv(vocab, SLICE)):
        if rank(tl.load(peaks + part)) > bound:
            tokens = part * SLICE + tl.arange(0, SLICE)
            x = tl.load(logits + tokens, mask=tokens < vocab, other=float("-inf"))
            above = rank(x) > bound
            weights = tl.where(above, relative_weights(x, peak, temperature), 0.0)
            count += tl.sum(above.to(tl.int32))
            mass += tl.sum(weights).to(tl.float64)
            scored = tl.where(weights < min_p, 0.0, weights) / exponentials(uniforms(key, tokens))
            score, place = tl.max(scored, 0, return_indices=True)
            winner = tl.where(score > best, part * SLICE + place, winner)
            best = tl.maximum(score, best)
    return count, mass, winner


@triton.jit
def find_kth_largest(logits, peaks, vocab, k, low, high, SLICE: tl.constexpr, PIVOTS: tl.constexpr):
    """A rank that exactly those logits of a row reach that are at least as high as its k-th largest.

    Bisection with several pivots a pass. The k-th largest itself must rank at `low` or above and at `high` or below.
    """
    low = low.to(tl.int64)
    high = high.to(tl.int64) + 1
    while high - low > 1:
        step = tl.cdiv(high - low, PIVOTS + 1)
        pivots = low + step * (1 + tl.arange(0, PIVOTS))
        pivots = tl.minimum(pivots, high).to(tl.int32)
        counts = tl.zeros([PIVOTS], tl.int32)
        for part in range(tl.cdiv(vocab, SLICE)):
            if rank(tl.load(peaks + part)) > low:
                tokens = part * SLICE + tl.arange(0, SLICE)
                x = tl.load(logits + tokens, mask=tokens < vocab, other=float("-inf"))
                counts += tl.sum((rank(x)[None, :] >= pivots[:, None]).to(tl.int32), axis=1)
        low = tl.maximum(low, tl.max(tl.where(counts >= k, pivots, low)))
        high = tl.minimum(high, tl.min(tl.where(counts < k, pivots, high)))
        # A pivot that exactly k logits reach ends the search early.
        high = tl.where(tl.max((counts == k).to(tl.int32)) > 0, low + 1, high)
    return low.to(tl.int32)


@triton.jit
def rank(x):
    """An int32 that orders as the float32 x does; -0 ranks with 0."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def relative_weights(x, peak, temperature):
    """e^((x - peak) / T), and its limit at T = 0: 1 at the peak, 0 below."""
    random = temperature > 0
    softened = tl.exp((x - peak) / tl.where(random, temperature, 1.0))
    return tl.where(random, softened, tl.where(x == peak, 1.0, 0.0))


@triton.jit
def exponentials(u):
    """-ln(1 - u), to the last bit or two also where u is small.

    y = 1 - u is rounded; u - (1 - y) is exactly what it lost.
    """
    y = 1.0 - u
    return (u - (1.0 - y)) - tl.log(y)


@triton.jit
def uniforms(key, tokens):
    """(x + 0.5) / 2^32 of the 32-bit hash x of key and token, below 1: bit for bit the reference's."""
    x = tokens.to(tl.uint32) ^ key.to(tl.uint32)
    x = hash_32(x) ^ (key >> 32).to(tl.uint32)
    u = (hash_32(x).to(tl.float32) + 0.5) * (1.0 / 4294967296.0)
    return tl.minimum(u, 1.0 - 1.0 / 16777216.0)


@triton.jit
def hash_32(x):
    """The reference's bijection of uint32 values."""
    x = tl.mul(x ^ (x >> 16), 0x21F0AAAD, sanitize_overflow=False)
    x = tl.mul(x ^ (x >> 15), 0xD35A2D97, sanitize_overflow=False)
    return x ^ (x >> 15)


@triton.jit
def stream_key(seed, counter):
    """uint64: SplitMix64's output number `counter`, started at a hash of `seed`."""
    increment: tl.constexpr = 0x9E3779B97F4A7C15
    start = hash_64(seed.to(tl.uint64) + increment)
    return hash_64(start + (counter.to(tl.uint64) + 1) * increment)


@triton.jit
def hash_64(x):
    """SplitMix64's output function on uint64 values."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
