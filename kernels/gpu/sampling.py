"""Drawing tokens on the GPU: filters and race without a sort, a normalised row or a wait for the host.

`kernels/reference_sampling.py` defines the result; the noise here has the same bits. Nothing here knows of requests.

The token that wins the race among all tokens also wins among any subset that contains it. The thresholds of the filters
are therefore never computed. Each row races first, then the tokens above the winner are counted. If top-k, top-p and
min-p keep the winner, it is the token drawn. If they do not, they keep no token at or below the winner's logit, and the
tokens above it race again. FlashInfer rejects and draws again in the same way, but with new noise; here every round
uses the same noise, so that the result is the one that the reference defines. The i-th likeliest token wins a round
with a probability of at most 1 / i, so at most 1 + ln(vocab) rounds are expected, and most rows need one.

Rows are cut into slices of a fixed size and sums have a fixed order, so a row's token depends on that row alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import SamplingBatch
from kernels.gpu.launch import Launcher

SLICE = 2048
"""Logits in a slice: enough to hide memory latency, and few enough that later rounds can skip most slices of a row."""

ROOM = 128
"""The least number of slices that each row of the intermediate results has room for. Vocabularies up to 2^18 thus share
one compiled variant of each kernel, and the rows have the same alignment in batches of any size."""

PIVOTS = 8
"""Thresholds that the search for the k-th largest logit tests in one pass over a row."""


def sample(launch: Launcher, logits: Tensor, batch: SamplingBatch) -> Tensor:
    """See `Backend.sample`: a token, int64 [rows], for each row of `logits`, [rows, vocab] float32."""
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
    """`peak = max x`, `mass = sum w`, `score = max w / E` and `winner = argmax w / E` of each slice of each row.

    Here w = e^((x - peak) / T). If T = 0, w is 1 where x = peak and 0 elsewhere, and E is 1: the winner is the first of
    the highest logits. A NaN counts as +inf; both make a row invalid.

    The grid is (rows, slices). `peaks`, `masses` and `scores` are [rows, ROOM] float32, `winners` [rows, ROOM] int32.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    tokens = part * SLICE + tl.arange(0, SLICE)  # [SLICE]
    x = tl.load(logits + row * row_stride + tokens, mask=tokens < vocab, other=float("-inf"))  # [SLICE]
    peak = tl.max(tl.where(x == x, x, float("inf")))
    temperature = tl.load(temperatures + row)
    key = stream_key(tl.load(seeds + row), tl.load(counters + row))

    # Beside a peak that is not finite, the stored values never decide a row's winner, but they must be numbers.
    finite = tl.abs(peak) < float("inf")
    weights = relative_weights(tl.where(finite, x, 0.0), tl.where(finite, peak, 0.0), temperature)  # [SLICE]
    scored = weights  # [SLICE]
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
    """`token = argmax w / E` over the tokens that the filters keep, where w = e^((x - max x) / T), for each row.

    Let n tokens of mass M = sum w have logits strictly above that of a token. The token is kept if n = 0, or if n < k
    and M < p * (the mass of the k likeliest tokens) and w >= min_p.

    The grid is (rows,). `peaks`, `masses`, `scores` and `winners` are the results of `race_slices`.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    peaks += row * ROOM
    slices = tl.cdiv(vocab, SLICE)
    part = tl.arange(0, ROOM)  # [ROOM]
    at = row * ROOM + part  # [ROOM]
    slice_peaks = tl.load(peaks + part, mask=part < slices, other=float("-inf"))  # [ROOM]
    peak = tl.max(slice_peaks)
    token = tl.full([], -1, tl.int32)
    if tl.abs(peak) < float("inf"):
        temperature = tl.load(temperatures + row)
        # Converts masses and scores from the slice's peak to the row's. The product's rounding error is harmless: a
        # token that may win has a high weight.
        scale = relative_weights(slice_peaks, peak, temperature)  # [ROOM]
        slice_masses = tl.load(masses + at, mask=part < slices, other=0.0)  # [ROOM]
        slice_scores = tl.load(scores + at, mask=part < slices, other=0.0) * scale  # [ROOM]
        token = tl.load(winners + row * ROOM + tl.argmax(slice_scores, 0))

        top_k = tl.minimum(tl.load(top_ks + row), vocab).to(tl.int32)
        top_p = tl.load(top_ps + row)
        min_p = tl.load(min_ps + row)
        if (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0)):
            key = stream_key(tl.load(seeds + row), tl.load(counters + row))
            top_k = tl.where(top_k > 0, top_k, vocab)
            top_p = tl.where(top_p < 1, top_p, float("inf"))
            mass = tl.sum((slice_masses * scale).to(tl.float64))
            # Every slice has a logit at or above the lowest peak, so the `slices` largest logits are too.
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
    """The winner under the filters in one row, given `token`, the winner without them.

    `total` is the mass of the row, `top_k` is 1 to vocab, and the k-th largest logit has a rank of at least `floor`.
    """
    # The highest weight is 1, so this bound leaves at least one token in every round.
    min_p = tl.minimum(min_p, 1.0)
    # The largest mass that may lie above a token that top-p keeps. With a top-k, this is only an upper bound until the
    # mass of the k likeliest tokens is known.
    limit = top_p * total
    exact = top_k == vocab
    rejected = True
    while rejected:
        x = tl.load(logits + token)
        weight = relative_weights(x, peak, temperature)
        count, mass, runner_up = survey(logits, peaks, vocab, rank(x), peak, temperature, min_p, key, SLICE=SLICE)
        kept = (count < top_k) & (weight >= min_p) & (mass < limit)
        # The k likeliest tokens have a mass of at least `mass + weight`. In most cases that is enough to keep the
        # token, without a search for the k-th largest logit.
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
    """(count, mass = sum w, argmax w / E) of the tokens of a row that rank above `bound`.

    The argmax is taken over the tokens with w >= min_p. Slices without a token above `bound` are skipped; only their
    peak is read. The mass of a slice is summed in float32, as a tree, and that of the row in float64: in float32, the
    rounding errors over a large vocabulary would exceed the last tokens' probabilities.
    """
    count = 0
    mass = tl.full([], 0, tl.float64)
    best = tl.full([], -1, tl.float32)
    winner = 0
    for part in range(tl.cdiv(vocab, SLICE)):
        if rank(tl.load(peaks + part)) > bound:
            tokens = part * SLICE + tl.arange(0, SLICE)  # [SLICE]
            x = tl.load(logits + tokens, mask=tokens < vocab, other=float("-inf"))  # [SLICE]
            above = rank(x) > bound  # [SLICE]
            weights = tl.where(above, relative_weights(x, peak, temperature), 0.0)  # [SLICE]
            count += tl.sum(above.to(tl.int32))
            mass += tl.sum(weights).to(tl.float64)
            scored = tl.where(weights < min_p, 0.0, weights) / exponentials(uniforms(key, tokens))  # [SLICE]
            score, place = tl.max(scored, 0, return_indices=True)
            winner = tl.where(score > best, part * SLICE + place, winner)
            best = tl.maximum(score, best)
    return count, mass, winner


@triton.jit
def find_kth_largest(logits, peaks, vocab, k, low, high, SLICE: tl.constexpr, PIVOTS: tl.constexpr):
    """A rank r such that a row's logits of rank r or above are exactly those at or above the k-th largest.

    The search is a bisection with PIVOTS pivots in each pass. The rank of the k-th largest logit must be in
    [`low`, `high`].
    """
    low = low.to(tl.int64)
    high = high.to(tl.int64) + 1
    while high - low > 1:
        step = tl.cdiv(high - low, PIVOTS + 1)
        pivots = low + step * (1 + tl.arange(0, PIVOTS))  # [PIVOTS]
        pivots = tl.minimum(pivots, high).to(tl.int32)
        counts = tl.zeros([PIVOTS], tl.int32)  # [PIVOTS]
        for part in range(tl.cdiv(vocab, SLICE)):
            if rank(tl.load(peaks + part)) > low:
                tokens = part * SLICE + tl.arange(0, SLICE)  # [SLICE]
                x = tl.load(logits + tokens, mask=tokens < vocab, other=float("-inf"))  # [SLICE]
                counts += tl.sum((rank(x)[None, :] >= pivots[:, None]).to(tl.int32), axis=1)
        low = tl.maximum(low, tl.max(tl.where(counts >= k, pivots, low)))
        high = tl.minimum(high, tl.min(tl.where(counts < k, pivots, high)))
        # A pivot with exactly k logits at or above it ends the search early.
        high = tl.where(tl.max((counts == k).to(tl.int32)) > 0, low + 1, high)
    return low.to(tl.int32)


@triton.jit
def rank(x):
    """An int32 with the same order as the float32 x, in the shape of `x`; -0 has the rank of 0."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)  # Shape of x.
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def relative_weights(x, peak, temperature):
    """e^((x - peak) / T) in the shape of `x`, or its limit if T = 0: 1 at the peak, 0 below."""
    random = temperature > 0
    softened = tl.exp((x - peak) / tl.where(random, temperature, 1.0))  # Shape of x.
    return tl.where(random, softened, tl.where(x == peak, 1.0, 0.0))


@triton.jit
def exponentials(u):
    """-ln(1 - u) in the shape of `u`, to the last bit or two, for small u as well.

    y = 1 - u is rounded, and u - (1 - y) is exactly its rounding error.
    """
    y = 1.0 - u  # Shape of u.
    return (u - (1.0 - y)) - tl.log(y)


@triton.jit
def uniforms(key, tokens):
    """(x + 0.5) / 2^32, clamped below 1, where x is a 32-bit hash of key and token, in the shape of `tokens`.

    The bits equal those of `kernels.reference_sampling.uniforms`.
    """
    x = tokens.to(tl.uint32) ^ key.to(tl.uint32)  # Shape of tokens.
    x = hash_32(x) ^ (key >> 32).to(tl.uint32)
    u = (hash_32(x).to(tl.float32) + 0.5) * (1.0 / 4294967296.0)
    return tl.minimum(u, 1.0 - 1.0 / 16777216.0)


@triton.jit
def hash_32(x):
    """The bijection of `kernels.reference_sampling.hash_32` on uint32 values, in the shape of `x`."""
    x = tl.mul(x ^ (x >> 16), 0x21F0AAAD, sanitize_overflow=False)
    x = tl.mul(x ^ (x >> 15), 0xD35A2D97, sanitize_overflow=False)
    return x ^ (x >> 15)


@triton.jit
def stream_key(seed, counter):
    """Output number `counter` of SplitMix64 started at a hash of `seed`: a uint64 scalar.

    The bits equal those of `kernels.reference_sampling.stream_keys`.
    """
    increment: tl.constexpr = 0x9E3779B97F4A7C15
    start = hash_64(seed.to(tl.uint64) + increment)
    return hash_64(start + (counter.to(tl.uint64) + 1) * increment)


@triton.jit
def hash_64(x):
    """SplitMix64's output function on a uint64 scalar, as `kernels.reference_sampling.hash_64`."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
