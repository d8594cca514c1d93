"""Log-probabilities as tables, which bring a token's and the likeliest ones' to the host in one transfer."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kernels.backend import Backend
from model.token_logprobs import TokenLogprobs

ROWS_AT_ONCE = 64
"""Rows of logits that `score` computes at once, lest a long prompt's logits take gigabytes."""


def score(backend: Backend, logits: Callable[[Tensor], Tensor], rows: Tensor, targets: Tensor, most: int) -> Tensor:
    """The table of known tokens `targets` [rows], by the logits that `logits` makes of `rows` [rows, hidden]."""
    parts = [
        logprob_table(backend, logits(some), tokens, most)
        for some, tokens in zip(rows.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts)


def logprob_table(backend: Backend, logits: Tensor, tokens: Tensor, most: int) -> Tensor:
    """A table [rows, 2 + 2 * most] float64 as `Backend.log_probabilities` makes it, of `logits` [rows, vocab] float32.

    `most` is limited to the size of the vocabulary. The row of an `INVALID_TOKEN` has no meaning. All columns share one
    tensor, so that one transfer suffices; float64 holds token ids exactly.
    """
    return backend.log_probabilities(logits, tokens.clamp(min=0), min(most, logits.shape[1]))


def read_entry(row: Sequence[float], top: int) -> TokenLogprobs:
    """One row of a table, with the `top` likeliest tokens of those that it has."""
    chosen, rank, *tops = row
    most = len(tops) // 2
    return TokenLogprobs(chosen, [int(token) for token in tops[most:][:top]], [*tops[:top]], int(rank))


def read_table(rows: Sequence[Sequence[float]], top: int) -> list[TokenLogprobs]:
    """All rows of a table."""
    return [read_entry(row, top) for row in rows]
