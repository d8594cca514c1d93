"""Edits of logits before the draw, in plain torch: penalties for tokens that came up, and masks.

The tokens that came up are counted in a table on the device, so that a drawn token need not come to the host first.
"""

import torch
from torch import Tensor

from kernels.backend import Penalties, TokenCounts


def count_tokens(counts: TokenCounts, requests: Tensor, tokens: Tensor) -> None:
    """See `Backend.count_tokens`."""
    known, lengths = counts.tokens[requests], counts.lengths[requests]
    places = torch.arange(known.shape[1], device=known.device)
    found = (places < lengths[:, None]) & (known == tokens[:, None])
    drawn, new = tokens >= 0, ~found.any(1)
    # A token that counts as none may come when no place is left.
    place = torch.where(new, lengths, found.int().argmax(1)).clamp(max=known.shape[1] - 1)
    token, times = counts.tokens[requests, place], counts.times[requests, place]
    counts.tokens[requests, place] = torch.where(drawn, tokens.int(), token)
    counts.times[requests, place] = torch.where(drawn, times.masked_fill(new, 0) + 1, times)
    counts.lengths[requests] = lengths + (drawn & new).int()


def penalise(logits: Tensor, counts: TokenCounts, penalties: Penalties) -> None:
    """See `Backend.penalise`."""
    requests = penalties.requests
    inside = torch.arange(counts.tokens.shape[1], device=logits.device) < counts.lengths[requests, None]
    # Places behind the last token repeat the first one, and write the same number to the same place.
    tokens, times = (
        torch.where(inside, column, column[:, :1]) for column in (counts.tokens[requests], counts.times[requests])
    )
    places = penalties.rows[:, None], tokens
    repetition, presence, frequency = (
        column[:, None] for column in (penalties.repetition, penalties.presence, penalties.frequency)
    )
    scores = logits[places]
    scores = torch.where(scores > 0, scores / repetition, scores * repetition)
    logits[places] = scores - presence * (times > 0) - frequency * times


def restrict(logits: Tensor, rows: Tensor, masks: Tensor) -> None:
    """See `Backend.restrict`."""
    bits = masks[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=logits.device) & 1
    banned = bits.flatten(1)[:, : logits.shape[1]] == 0
    logits[rows] = logits[rows].masked_fill(banned, float("-inf"))
