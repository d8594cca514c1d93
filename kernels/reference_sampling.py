"""Drawing a token from each row of logits: the filters, and the random numbers.

The draw is an exponential race: with independent E_i ~ Exp(1), argmin E_i / p_i is token i with probability p_i. This
is the Gumbel-max trick without the logarithm (Maddison et al., arXiv 1411.0030). The race needs no normaliser and no
sum over the vocabulary, so a filter only sets weights to 0.

E_i is a pure function of (the row's seed, its counter, the token id): a counter-based generator, as in Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A request therefore draws the same token alone, in any row of
any batch, and from any subset of candidates that contains the winner.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.backend import SamplingBatch

CANDIDATES = 1024
"""The number of likeliest tokens that are sorted first for a filtered row; most filters keep fewer."""


def sample(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """See `Backend.sample`.

    The filters follow transformers' logits warpers, in this order: temperature, top-k, top-p, min-p, each applied to
    the tokens that the one before it kept. Top-k keeps the k likeliest tokens. Top-p keeps the fewest likeliest tokens
    whose mass reaches p, and at least one. Among tokens with equal logits, lower ids count as likelier in both,
    so that no more of them are kept than are needed. Min-p keeps tokens with a probability of at least min_p times the
    highest.
    """
    tokens = torch.full_like(batch.seed, -1)
    for rows, draw in zip(groups(logits, batch), (draw_greedy, draw_unfiltered, draw_filtered), strict=True):
        if rows.numel():
            tokens[rows] = draw(logits[rows], select_rows(batch, rows))
    return tokens


def sampled_weights(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The weights [rows, vocab] float32 in proportion to which `sample` draws tokens.

    They are relative to the highest; 0 for tokens that are never drawn, and in all of a row from which none can be.
    """
    weights = torch.zeros_like(logits)
    for rows, weigh in zip(groups(logits, batch), (weigh_greedy, weigh_unfiltered, weigh_filtered), strict=True):
        if rows.numel():
            weights[rows] = weigh(logits[rows], select_rows(batch, rows))
    return weights


def groups(logits: Tensor, batch: SamplingBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The rows, each int64 [n], that are greedy, drawn from all tokens, and filtered; the others draw nothing."""
    valid = logits.amax(dim=-1).isfinite()
    random = batch.temperature > 0
    filtered = (batch.top_k > 0) | (batch.top_p < 1) | (batch.min_p > 0)
    greedy, unfiltered, rest = valid & ~random, valid & random & ~filtered, valid & random & filtered
    return greedy.nonzero().flatten(), unfiltered.nonzero().flatten(), rest.nonzero().flatten()


def select_rows(batch: SamplingBatch, rows: Tensor) -> SamplingBatch:
    """The part of `batch` that belongs to `rows`, int64 [n]."""
    return batch.map(lambda column: column[rows])


def draw_greedy(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The likeliest token of each row of [rows, vocab]; the lowest id where several tie."""
    return logits.argmax(dim=-1)


def draw_unfiltered(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """A token drawn from softmax(logits / temperature) for each row of [rows, vocab]."""
    every = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    return race(softmax_weights(logits, batch.temperature), stream_keys(batch), every)


def draw_filtered(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """A token drawn under the filters for each row of [rows, vocab].

    Only the CANDIDATES likeliest tokens are sorted at first. Sorting a whole row costs ten times as much, and only rows
    whose filters keep more tokens need it.
    """
    vocab = logits.shape[1]
    tokens = draw_ranked(logits, batch, min(CANDIDATES, vocab))
    rest = (tokens < 0).nonzero().flatten()
    if rest.numel():
        tokens[rest] = draw_ranked(logits[rest], select_rows(batch, rest), vocab)
    return tokens


def weigh_greedy(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """1 for the token of `draw_greedy`, 0 for all others: [rows, vocab]."""
    return torch.zeros_like(logits).scatter_(1, draw_greedy(logits, batch)[:, None], 1.0)


def weigh_unfiltered(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The weights of `draw_unfiltered`, [rows, vocab]."""
    return softmax_weights(logits, batch.temperature)


def weigh_filtered(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The weights of `draw_filtered`, [rows, vocab]."""
    vocab = logits.shape[1]
    kept = keep_ranked(logits, batch, min(CANDIDATES, vocab))
    weights = torch.zeros_like(logits).scatter_(1, kept.tokens, kept.weights)
    rest = (~kept.complete).nonzero().flatten()
    if rest.numel():
        kept = keep_ranked(logits[rest], select_rows(batch, rest), vocab)
        weights[rest] = torch.zeros_like(logits[rest]).scatter_(1, kept.tokens, kept.weights)
    return weights


def draw_ranked(logits: Tensor, batch: SamplingBatch, count: int) -> Tensor:
    """A token drawn from the `count` likeliest of each row; -1 if the filters may keep tokens outside of these."""
    kept = keep_ranked(logits, batch, count)
    winners = race(kept.weights, stream_keys(batch), kept.tokens.int())
    return kept.tokens.gather(1, winners[:, None])[:, 0].masked_fill(~kept.complete, -1)


class Kept(NamedTuple):
    """The part that the filters keep of some of each row's tokens."""

    weights: Tensor
    """[rows, count] float32: probabilities relative to the highest, 0 where a filter drops the token."""
    tokens: Tensor
    """[rows, count] int64: token ids, the likeliest first; of tokens with equal logits, the lowest id first."""
    complete: Tensor
    """[rows] bool: whether these tokens are known to be all that the filters keep of the row."""


def keep_ranked(logits: Tensor, batch: SamplingBatch, count: int) -> Kept:
    """The part that the filters keep of `count` likeliest tokens of each row."""
    # Which of the tokens that tie with the last one are among these is not defined; their order is.
    ids = logits.topk(count, sorted=False).indices.sort(-1).values
    ranked, order = logits.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(1, order)
    top_k, top_p, min_p = batch.top_k[:, None], batch.top_p[:, None], batch.min_p[:, None]

    cut = (torch.arange(count, device=logits.device) >= top_k) & (top_k > 0)
    lowest = ranked[:, -1].clone()
    ranked.masked_fill_(cut, float("-inf"))
    weights = softmax_weights(ranked, batch.temperature)

    mass = weights.sum(-1, dtype=torch.float64)
    spread = ((batch.top_k == 0) & (batch.top_p < 1)).nonzero().flatten()
    mass[spread] = softmax_weights(logits[spread], batch.temperature[spread]).sum(-1, dtype=torch.float64)
    # In float32 the sum over a large vocabulary would err by more than the last tokens' probabilities.
    above = weights.cumsum(-1, dtype=torch.float64) - weights
    inside = (above < top_p * mass[:, None]) | (top_p == 1)
    inside[:, 0] = True
    weights.masked_fill_(~inside | (weights < min_p), 0.0)

    # Every kept token is among the candidates if the last kept one has a higher logit than the last candidate, with
    # which others may tie. In a row with a top-k it must be top-k that drops that one: otherwise candidates are missing
    # from the mass that top-p is a share of.
    kept = torch.where(top_k > 0, ~cut, weights > 0).sum(-1, keepdim=True)
    complete = (ranked.gather(1, kept - 1)[:, 0] > lowest) | (count == logits.shape[1])
    return Kept(weights, ids, complete)


def softmax_weights(logits: Tensor, temperature: Tensor) -> Tensor:
    """exp((logits - max(logits)) / temperature) for [rows, n]: probabilities relative to the highest.

    The maximum is subtracted before the division, so that no temperature overflows.
    """
    return logits.sub(logits.amax(dim=-1, keepdim=True)).div_(temperature[:, None]).exp_()


def race(weights: Tensor, keys: Tensor, tokens: Tensor) -> Tensor:
    """The winner of the race, argmax weights / E, in each row of `weights` [rows, n]: its column, int64 [rows].

    `tokens`, int32 [n] or [rows, n], are the token ids of the columns. `weights` is overwritten. The highest weight is
    1 and exponentials are positive and finite, so a weight of 0 never wins.
    """
    return weights.div_(exponentials(uniforms(keys, tokens))).argmax(dim=-1)


def exponentials(u: Tensor) -> Tensor:
    """-ln(1 - u), exponentially distributed for uniform u; overwrites u.

    Small values decide the race, and log1p is exact for small u. With -log(u), a u that rounds to 1 would give the
    value 0, and its token would win however unlikely it is.
    """
    return u.neg_().log1p_().neg_()


def uniforms(keys: Tensor, tokens: Tensor) -> Tensor:
    """(x + 0.5) / 2^32, float32 [rows, n] in (0, 1), where x is a 32-bit hash of a row's key and a token id.

    `keys` are int64 [rows], `tokens` int32 [n] or [rows, n]. The smallest number is 2^-33, fine enough to draw a token
    of probability 1e-8 as often as it should be. Each half of the key is mixed in before one round of the hash. All
    operations are 32 bits wide and in place, since they run for every token of the vocabulary.
    """
    low, high = keys.view(torch.int32).view(-1, 2, 1).unbind(1)
    x = tokens ^ low
    hash_32(x)
    x ^= high
    hash_32(x)
    u = x.view(torch.uint32).to(torch.float32)
    # The largest x round up to 2^32 in float32. Clamping keeps u below 1, so that its exponential is finite.
    return u.add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)


def hash_32(x: Tensor) -> None:
    """Hash int32 values in place, by a bijection with little avalanche bias.

    The shifts and multipliers are those of the improved lowbias32 (Wellons, "Prospecting for hash functions",
    nullprogram.com, 2018; public domain).
    """
    for shift, multiplier in ((16, 0x21F0AAAD), (15, 0xD35A2D97 - 2**32)):
        x ^= logical_shift(x, shift)
        x *= multiplier
    x ^= logical_shift(x, 15)


def stream_keys(batch: SamplingBatch) -> Tensor:
    """Each row's key, int64 [rows]: output number `counter` of SplitMix64 started at a hash of `seed`.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014). Hashing the seed
    sends neighbouring seeds to distant starts. Unhashed, seeds that differ by the increment would share keys.
    """
    increment = 0x9E3779B97F4A7C15 - 2**64
    return hash_64(hash_64(batch.seed + increment) + (batch.counter + 1) * increment)


def hash_64(x: Tensor) -> Tensor:
    """SplitMix64's output function on int64 values: Stafford's variant 13 of MurmurHash3's finaliser."""
    x = (x ^ logical_shift(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ logical_shift(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ logical_shift(x, 31)


def logical_shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros. Torch's shift copies the sign, and is missing for unsigned types."""
    mask = (1 << (torch.iinfo(x.dtype).bits - bits)) - 1
    return (x >> bits).bitwise_and_(mask)
