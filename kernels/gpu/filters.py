"""The tokens of one row that top-k, top-p and min-p keep, and which of them wins the race.

Let n tokens of mass M = sum w stand above a token, where w = e^((x - max x) / T): those with a higher logit, and those
with the same logit and a lower id. The token is kept if n = 0, or if n < k and M < p * (the mass of the k tokens that
stand highest) and w >= min_p. In these functions a filter that is off has k = vocab, p = inf or min_p = 0.

There are two ways. Where the kept tokens are known to be among a few, those are collected and settled in registers.
Otherwise a row is settled over its slices: the token that wins the race among all tokens also wins among any subset
that contains it, so no threshold is computed. If the filters keep the winner, it is the token drawn. If not, they keep
no token that stands below it either, and the tokens above it race again. FlashInfer rejects and draws again in the same
way, but with new noise; here every round uses the same noise, so that the result is the one that the reference defines.
The i-th likeliest token wins a round with a probability of at most 1 / i, so at most 1 + ln(vocab) rounds are expected,
and most rows need one.
"""

import triton
import triton.language as tl

from kernels.gpu.noise import exponentials, uniforms

LOWEST = tl.constexpr(-(2**63))
"""A standing below those of all tokens."""
HIGHEST = tl.constexpr(2**63 - 1)
"""A standing above those of all tokens."""
INFINITE = tl.constexpr(-0x7F800001 << 32)
"""A standing that no token with a logit of -inf stands below."""
LAST_TOKEN = tl.constexpr(2**31 - 1)
"""An id above those of all tokens."""


@triton.jit
def collect(
    logits,
    crests,
    strips,
    found,
    vocab,
    bound,
    peak,
    temperature,
    min_p,
    STRIP: tl.constexpr,
    CRESTS: tl.constexpr,
    FEW: tl.constexpr,
    TILE: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """Store the tokens of a row that stand at `bound` or above and have w >= `min_p` at `found`; return their number.

    Only the strips whose crest may be such a token are read. The number is above CANDIDATES, and what is stored is
    incomplete, if there are more tokens than that, or more than FEW strips. `crests` is [CRESTS] float32, the highest
    logit of each strip of STRIP; `strips` [CRESTS] and `found` [CANDIDATES] int32 are scratch. Tokens ascend.
    """
    strip = tl.arange(0, CRESTS)  # [CRESTS]
    real = strip * STRIP < vocab  # [CRESTS]
    crest = tl.load(crests + strip, mask=real, other=float("-inf"))  # [CRESTS]
    holds = real & (standing(crest, strip * STRIP) >= bound)  # [CRESTS]
    holds &= relative_weights(crest, peak, temperature) >= min_p
    holding = tl.sum(holds.to(tl.int32))
    count = CANDIDATES + 1
    if holding <= FEW:
        tl.store(strips + tl.cumsum(holds.to(tl.int32), 0) - 1, strip, mask=holds)
        tl.debug_barrier()  # Some threads load what others have stored.
        count = 0
        for first in range(0, holding, TILE // STRIP):
            which = first + tl.arange(0, TILE // STRIP)  # [TILE / STRIP]
            start = tl.load(strips + which, mask=which < holding, other=0) * STRIP  # [TILE / STRIP]
            tokens = start[:, None] + tl.arange(0, STRIP)[None, :]  # [TILE / STRIP, STRIP]
            inside = (which < holding)[:, None] & (tokens < vocab)  # [TILE / STRIP, STRIP]
            x = tl.load(logits + tokens, mask=inside, other=float("-inf"))  # [TILE / STRIP, STRIP]
            wanted = inside & (standing(x, tokens) >= bound) & (relative_weights(x, peak, temperature) >= min_p)
            chosen = tl.reshape(wanted.to(tl.int32), [TILE])  # [TILE]
            place = count + tl.cumsum(chosen, 0) - 1  # [TILE]
            tl.store(found + place, tl.reshape(tokens, [TILE]), mask=(chosen > 0) & (place < CANDIDATES))
            count += tl.sum(chosen)
        tl.debug_barrier()
    return count


@triton.jit
def settle_few(
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
    CANDIDATES: tl.constexpr,
):
    """The winner under the filters, which is among the `count` tokens at `found`: all that stand at `bound` or above.

    `total` is the mass that top-p is a share of; 0: that of the k highest tokens, which then are among those found.
    """
    place = tl.arange(0, CANDIDATES)  # [CANDIDATES]
    real = place < count  # [CANDIDATES]
    tokens = tl.load(found + place, mask=real, other=0)  # [CANDIDATES]
    x = tl.load(logits + tokens, mask=real, other=float("-inf"))  # [CANDIDATES]
    standings = tl.where(real, standing(x, tokens), LOWEST)  # [CANDIDATES]
    weights = relative_weights(x, peak, temperature)  # [CANDIDATES]
    first = tl.max(standings)
    kept = real  # [CANDIDATES]
    if top_k < vocab:
        kept = standings >= bisect(standings, bound, first, top_k, top_k)
    if total == 0:
        total = tl.sum(tl.where(kept, weights, 0.0).to(tl.float64))
    limit = top_p * total
    scored = tl.where(weights < min_p, 0.0, weights) / exponentials(uniforms(key, tokens))  # [CANDIDATES]
    scored = tl.where(kept, scored, -1.0)
    token = 0
    rejected = True
    while rejected:
        _, winner = tl.max(scored, 0, return_indices=True)
        token = tl.sum(tl.where(place == winner, tokens, 0))
        level = tl.sum(tl.where(place == winner, standings, 0))
        above = standings > level  # [CANDIDATES]
        rejected = (level < first) & (tl.sum(tl.where(above, weights, 0.0).to(tl.float64)) >= limit)
        scored = tl.where(above, scored, -1.0)
    return token


@triton.jit
def bisect(numbers, low, high, least, most):
    """An int64 from `low` to `high` that at least `least` of `numbers` reach, and at most `most` if there is one.

    At least `least` must reach `low`. Where more than `most` are equal, it is the highest one that `least` reach.
    """
    high = high + 1
    while high > low + 1:
        middle = (low & high) + ((low ^ high) >> 1)  # Half of the sum, which may have 65 bits.
        count = tl.sum((numbers >= middle).to(tl.int32))
        low = tl.where(count >= least, middle, low)
        high = tl.where(count >= least, high, middle)
        high = tl.where((count >= least) & (count <= most), low + 1, high)
    return low


@triton.jit
def bound_of_top_k(crests, vocab, top_k, peak, STRIP: tl.constexpr, CRESTS: tl.constexpr):
    """A standing that the k-th largest logit of a row has or exceeds, and not many more logits than k do.

    The strips' crests are logits too, so their k-th largest bounds that of all logits from below. It is approximated
    from below, since a few more candidates cost less than the last steps of the search.
    """
    strip = tl.arange(0, CRESTS)  # [CRESTS]
    real = strip * STRIP < vocab  # [CRESTS]
    crest = tl.load(crests + strip, mask=real, other=float("-inf"))  # [CRESTS]
    ranks = tl.where(real, rank(crest).to(tl.int64), LOWEST)  # [CRESTS]
    bound = tl.full([], INFINITE, tl.int64)
    if top_k <= tl.cdiv(vocab, STRIP):
        bound = bisect(ranks, bound >> 32, rank(peak).to(tl.int64), top_k, top_k + (top_k >> 2) + 8) << 32
    return bound


@triton.jit
def leads(logits, crests, place, peak, STRIP: tl.constexpr, CRESTS: tl.constexpr):
    """Whether no token of a row stands above `place`, which is a token's standing or HIGHEST."""
    leading = place == HIGHEST
    if (place >> 32) == rank(peak):
        token = token_at(place)
        own = token // STRIP
        strip = tl.arange(0, CRESTS)  # [CRESTS]
        crest = tl.load(crests + strip, mask=strip < own, other=float("-inf"))  # [CRESTS]
        before = own * STRIP + tl.arange(0, STRIP)  # [STRIP]
        x = tl.load(logits + before, mask=before < token, other=float("-inf"))  # [STRIP]
        leading = tl.sum((crest == peak).to(tl.int32)) + tl.sum((x == peak).to(tl.int32)) == 0
    return leading


@triton.jit
def weigh_above(
    logits, peaks, vocab, pivots, peak, temperature, first, last, SLICE: tl.constexpr, PIVOTS: tl.constexpr
):
    """(count, mass = sum w), [PIVOTS] int32 and float64, of the tokens that stand above each pivot.

    The tokens are those of the slices `first` to `last` - 1 of a row. `pivots` is [PIVOTS] int64. Slices without a
    token above a pivot are skipped. The mass of a slice is summed in float32, as a tree, and that of several in
    float64: in float32, the rounding errors over a large vocabulary would exceed the last tokens' probabilities.
    """
    counts = tl.zeros([PIVOTS], tl.int32)  # [PIVOTS]
    masses = tl.zeros([PIVOTS], tl.float64)  # [PIVOTS]
    least = tl.min(pivots)
    token = token_at(pivots)  # [PIVOTS]
    own = token // SLICE  # [PIVOTS]
    level = (pivots >> 32).to(tl.int32)  # [PIVOTS]
    for part in range(first, last):
        if standing(tl.load(peaks + part), part * SLICE) > least:
            tokens = part * SLICE + tl.arange(0, SLICE)  # [SLICE]
            x = tl.load(logits + tokens, mask=tokens < vocab, other=float("-inf"))  # [SLICE]
            weights = relative_weights(x, peak, temperature)  # [SLICE]
            # Outside of a pivot's own slice all ids lie on one side of its own, so that a tie is above it, or none is.
            above = rank(x)[None, :] > (level - (part < own).to(tl.int32))[:, None]  # [PIVOTS, SLICE]
            counts += tl.sum(above.to(tl.int32), 1)
            masses += tl.sum(tl.where(above, weights[None, :], 0.0), 1).to(tl.float64)
    # In its own slice, those that tie with it and have lower ids are left.
    each = tl.arange(0, PIVOTS)  # [PIVOTS]
    for index in range(PIVOTS):
        place = tl.sum(tl.where(each == index, token, 0))
        if (place > first * SLICE) & (place < last * SLICE):
            tokens = place // SLICE * SLICE + tl.arange(0, SLICE)  # [SLICE]
            x = tl.load(logits + tokens, mask=tokens < place, other=float("-inf"))  # [SLICE]
            pivot = tl.load(logits + place)
            ties = tl.sum((x == pivot).to(tl.int32))
            if ties > 0:
                weight = ties * relative_weights(pivot, peak, temperature)
                counts += tl.where(each == index, ties, 0)
                masses += tl.where(each == index, weight, 0.0).to(tl.float64)
    return counts, masses


@triton.jit
def race_slice(logits, part, vocab, bound, peak, temperature, min_p, key, SLICE: tl.constexpr):
    """(count, mass, max w / E, argmax w / E) of the tokens of a slice that stand above `bound`.

    The race is among those with w >= `min_p`; its maximum is 0 if there are none.
    """
    tokens = part * SLICE + tl.arange(0, SLICE)  # [SLICE]
    x = tl.load(logits + tokens, mask=tokens < vocab, other=float("-inf"))  # [SLICE]
    above = (standing(x, tokens) > bound) & (tokens < vocab)  # [SLICE]
    weights = tl.where(above, relative_weights(x, peak, temperature), 0.0)  # [SLICE]
    scored = tl.where(weights < min_p, 0.0, weights) / exponentials(uniforms(key, tokens))  # [SLICE]
    score, place = tl.max(scored, 0, return_indices=True)
    return tl.sum(above.to(tl.int32)), tl.sum(weights).to(tl.float64), score, part * SLICE + place


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
    """The winner under the filters in one row, given `token`, the winner of a set of tokens that has all they keep.

    The set holds every token above a standing, at least those with w >= min_p. `total` is the mass of the row, `top_k`
    is 1 to vocab, and the k-th largest logit has a rank of at least `floor`.
    """
    # With a top-k, the largest mass that may lie above a token that top-p keeps is only bounded until the mass of the k
    # highest tokens is known.
    limit = top_p * total
    exact = top_k == vocab
    rejected = True
    while rejected:
        x = tl.load(logits + token)
        weight = relative_weights(x, peak, temperature)
        count, mass, runner_up = survey(
            logits, peaks, vocab, standing(x, token), peak, temperature, min_p, key, SLICE=SLICE
        )
        kept = (count < top_k) & (weight >= min_p) & (mass < limit)
        # The k highest tokens have a mass of at least `mass + weight`. In most cases that is enough to keep the
        # token, without a search for the k-th largest logit.
        if kept & (exact == 0) & (mass >= top_p * (mass + weight)):
            last = find_kth_largest(logits, peaks, vocab, top_k, floor, rank(x), SLICE=SLICE, PIVOTS=PIVOTS)
            above, total, _ = survey(
                logits, peaks, vocab, standing(number_of(last), 0), peak, temperature, min_p, key, SLICE=SLICE
            )
            total += ((top_k - above) * relative_weights(number_of(last), peak, temperature)).to(tl.float64)
            limit = top_p * total
            exact = True
            kept = mass < limit
        rejected = (count > 0) & (kept == 0)
        token = tl.where(rejected, runner_up, token)
    return token


@triton.jit
def survey(logits, peaks, vocab, bound, peak, temperature, min_p, key, SLICE: tl.constexpr):
    """(count, mass = sum w, argmax w / E) of the tokens of a row that stand above `bound`.

    The argmax is taken over the tokens with w >= min_p. Slices without a token above `bound` are skipped; only their
    peak is read. For the sums see `weigh_above`.
    """
    count = 0
    mass = tl.full([], 0, tl.float64)
    best = tl.full([], -1, tl.float32)
    winner = 0
    for part in range(tl.cdiv(vocab, SLICE)):
        if standing(tl.load(peaks + part), part * SLICE) > bound:
            above, weight, score, place = race_slice(
                logits, part, vocab, bound, peak, temperature, min_p, key, SLICE=SLICE
            )
            count += above
            mass += weight
            winner = tl.where(score > best, place, winner)
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
def number_of(rank):
    """The float32 with a rank, in the shape of `rank`."""
    return (rank ^ ((rank >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def standing(x, tokens):
    """An int64 in the shape of `x`, the logits of `tokens`: the higher the logit, and of equal ones the lower the id.

    The high 32 bits are the rank of the logit.
    """
    return (rank(x).to(tl.int64) << 32) + (LAST_TOKEN - tokens)


@triton.jit
def token_at(place):
    """The token with a standing, int32 in the shape of `place`; 0 for HIGHEST."""
    return LAST_TOKEN - (place & LAST_TOKEN).to(tl.int32)


@triton.jit
def relative_weights(x, peak, temperature):
    """e^((x - peak) / T) in the shape of `x`, or its limit if T = 0: 1 at the peak, 0 below."""
    random = temperature > 0
    softened = tl.exp((x - peak) / tl.where(random, temperature, 1.0))  # Shape of x.
    return tl.where(random, softened, tl.where(x == peak, 1.0, 0.0))
