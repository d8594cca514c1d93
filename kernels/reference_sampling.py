"""Drawing a token from each row of logits: the filters, and the random numbers a draw depends on.

The draw is an exponential race: with independent E_i ~ Exp(1), token argmin E_i / p_i comes out with probability p_i,
which is Gumbel-max in other words (Maddison et al., arXiv 1411.0030). It needs neither a normaliser nor a sum over the
vocabulary, so a filter is only a weight set to 0.

E_i is a pure function of (the row's seed, its counter, the token id): a counter-based generator, as in Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A request therefore draws the same token alone, in any row of
any batch, and from any subset of candidates that holds the winner.
"""

import torch
from torch import Tensor

from kernels.backend import SamplingBatch

CANDIDATES = 1024
"""Filtered rows look at this many of their likeliest tokens first; few filters keep more."""


def sample(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """See `Backend.sample`. A row that holds +inf is as invalid as one that holds a NaN.

    The filters follow transformers' logits warpers, in this order: temperature, top-k, top-p, min-p, each on what
    the one before it left. Top-p keeps the fewest likeliest tokens whose mass reaches p, at least one; min-p keeps
    probabilities of at least min_p times the highest. Tokens that tie with the last one kept are kept.
    """
    valid = logits.amax(dim=-1).isfinite()
    random = batch.temperature > 0
    filtered = (batch.top_k > 0) | (batch.top_p < 1) | (batch.min_p > 0)
    tokens = torch.full_like(batch.seed, -1)
    for group, draw in (
        (valid & ~random, draw_greedy),
        (valid & random & ~filtered, draw_unfiltered),
        (valid & random & filtered, draw_filtered),
    ):
        rows = group.nonzero().flatten()
        if rows.numel():
            tokens[rows] = draw(logits[rows], select_rows(batch, rows))
    return tokens


def select_rows(batch: SamplingBatch, rows: Tensor) -> SamplingBatch:
    """The batch of the given rows, int64 [n], alone."""
    return batch.map(lambda column: column[rows])


def draw_greedy(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The likeliest token of [rows, vocab], the first of several."""
    return logits.argmax(dim=-1)


def draw_unfiltered(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """A token of softmax(logits / temperature) for each row of [rows, vocab]."""
    every = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    return race(softmax_weights(logits, batch.temperature), stream_keys(batch), every)


def draw_filtered(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """A token for each row of [rows, vocab], by way of its likeliest tokens.

    Sorting a whole row costs ten times as much, and only a row whose filters reach past the candidates needs it.
    """
    vocab = logits.shape[1]
    tokens = draw_ranked(logits, batch, min(CANDIDATES, vocab))
    rest = (tokens < 0).nonzero().flatten()
    if rest.numel():
        tokens[rest] = draw_ranked(logits[rest], select_rows(batch, rest), vocab)
    return tokens


def draw_ranked(logits: Tensor, batch: SamplingBatch, count: int) -> Tensor:
    """Filter the `count` likeliest tokens of each row and draw from them; -1 if a filter may keep others as well."""
    ranked, ids = logits.topk(count)
    top_k, top_p, min_p = batch.top_k[:, None], batch.top_p[:, None], batch.min_p[:, None]

    cut = (ranked < ranked.gather(1, top_k.clamp(1, count) - 1)) & (top_k > 0)
    ranked.masked_fill_(cut, float("-inf"))
    weights = softmax_weights(ranked, batch.temperature)

    mass = weights.sum(-1, dtype=torch.float64)
    spread = ((batch.top_k == 0) & (batch.top_p < 1)).nonzero().flatten()
    mass[spread] = softmax_weights(logits[spread], batch.temperature[spread]).sum(-1, dtype=torch.float64)
    # float64, since a float32 sum over a large vocabulary errs by more than the last tokens' probabilities.
    above = weights.cumsum(-1, dtype=torch.float64) - weights
    inside = (above < top_p * mass[:, None]) | (top_p == 1)
    inside[:, 0] = True
    last = ranked.gather(1, inside.sum(-1, keepdim=True) - 1)
    weights.masked_fill_((ranked < last) | (weights < min_p), 0.0)

    # The candidates hold all that is kept if the last of them is dropped, in a row with a top-k already by that:
    # the mass that top-p is measured by would be short otherwise.
    complete = torch.where(batch.top_k > 0, cut[:, -1], weights[:, -1] == 0) | (count == logits.shape[1])
    tokens = ids.gather(1, race(weights, stream_keys(batch), ids.int())[:, None])[:, 0]
    return tokens.masked_fill(~complete, -1)


def softmax_weights(logits: Tensor, temperature: Tensor) -> Tensor:
    """exp((logits - their maximum) / temperature) for [rows, n]: probabilities relative to the highest.

    The maximum goes before the division, so that no temperature overflows.
    """
    return logits.sub(logits.amax(dim=-1, keepdim=True)).div_(temperature[:, None]).exp_()


def race(weights: Tensor, keys: Tensor, tokens: Tensor) -> Tensor:
    """The winning column of each row of `weights` [rows, n], whose tokens are int32 [n] or [rows, n].

    Consumes `weights`. The highest one is 1 and exponentials are positive and finite, so a weight of 0 never wins.
    """
    return weights.div_(exponentials(uniforms(keys, tokens))).argmax(dim=-1)


def exponentials(u: Tensor) -> Tensor:
    """-ln(1 - u), exponentially distributed for uniform u; overwrites u.

    Small values decide the race, and log1p gives them exactly where u is small. Were they to round to 0, as with
    -log(u) for a u that rounds to 1, the most unlikely token would win whenever it happened.
    """
    return u.neg_().log1p_().neg_()


def uniforms(keys: Tensor, tokens: Tensor) -> Tensor:
    """float32 [rows, n] in (0, 1): for each row's key, int64 [rows], a number for each token, int32 [n] or [rows, n].

    (x + 0.5) / 2^32 of a 32-bit hash x: the smallest is 2^-33, so a token of probability 1e-8 still gets its due.
    Each half of the key goes before one round of the hash. 32-bit operations alone, and in place: this is done for
    every token of the vocabulary.
    """
    low, high = keys.view(torch.int32).view(-1, 2, 1).unbind(1)
    x = tokens ^ low
    hash_32(x)
    x ^= high
    hash_32(x)
    u = x.view(torch.uint32).to(torch.float32)
    # The largest x round up to 2^32 in float32; u stays below 1, so that its exponential is finite.
    return u.add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)


def hash_32(x: Tensor) -> None:
    """A bijection of int32 values, in place, with next to no bias in its avalanche.

    Shifts and multipliers: the improved lowbias32 of Wellons, "Prospecting for hash functions" (nullprogram.com,
    2018; public domain).
    """
    for shift, multiplier in ((16, 0x21F0AAAD), (15, 0xD35A2D97 - 2**32)):
        x ^= logical_shift(x, shift)
        x *= multiplier
    x ^= logical_shift(x, 15)


def stream_keys(batch: SamplingBatch) -> Tensor:
    """int64 [rows]: each row's key, output number `counter` of SplitMix64 started at a hash of `seed`.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014). The hash sends neighbouring
    seeds to far-off starts; unhashed, those that differ by the generator's increment would share their keys.
    """
    increment = 0x9E3779B97F4A7C15 - 2**64
    return hash_64(hash_64(batch.seed + increment) + (batch.counter + 1) * increment)


def hash_64(x: Tensor) -> Tensor:
    """SplitMix64's output function on int64 values: Stafford's variant 13 of MurmurHash3's finaliser."""
    x = (x ^ logical_shift(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ logical_shift(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ logical_shift(x, 31)


def logical_shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros. Torch's own shift copies the sign, and its unsigned types have none."""
    mask = (1 << (torch.iinfo(x.dtype).bits - bits)) - 1
    return (x >> bits).bitwise_and_(mask)
