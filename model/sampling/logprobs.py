"""Log-probabilities as tables, which bring a token's and the likeliest ones' to the host in one transfer."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.seen import TokenLogprobs

ROWS_AT_ONCE = 64
"""Rows of logits that `score` computes at once, lest a long prompt's logits take gigabytes."""


def score(logits: Callable[[Tensor], Tensor], rows: Tensor, targets: Tensor, most: int) -> Tensor:
    """The table of known tokens `targets` [rows], by the logits that `logits` makes of `rows` [rows, hidden]."""
    parts = [
        logprob_table(torch.log_softmax(logits(some), dim=-1), tokens, most)
        for some, tokens in zip(rows.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts)


def logprob_table(scores: Tensor, tokens: Tensor, most: int) -> Tensor:
    """A table of `tokens` [rows] and of each row's likeliest tokens, by log-probabilities `scores` [rows, vocab].

    Each row of the table [rows, 2 + 2 * most] float64 has the token's log-probability and its rank, then the `most`
    highest log-probabilities in descending order, then their token ids.

    `most` is limited to the size of the vocabulary. The row of an `INVALID_TOKEN` has no meaning.
    """
    chosen = scores.gather(1, tokens.clamp(min=0)[:, None])
    top_scores, top_tokens = scores.topk(min(most, scores.shape[1]))
    # All columns share one tensor, so that one transfer suffices; float64 holds token ids exactly.
    rank = 1 + (scores > chosen).sum(1, keepdim=True)
    return torch.cat([chosen.double(), rank.double(), top_scores.double(), top_tokens.double()], dim=1)


def read_entry(row: Sequence[float], top: int) -> TokenLogprobs:
    """One row of a table, with the `top` likeliest tokens of those that it has."""
    chosen, rank, *tops = row
    most = len(tops) // 2
    return TokenLogprobs(chosen, [int(token) for token in tops[most:][:top]], [*tops[:top]], int(rank))


def read_table(rows: Sequence[Sequence[float]], top: int) -> list[TokenLogprobs]:
    """All rows of a table."""
    return [read_entry(row, top) for row in rows]
