"""A token's log-probabilities, as a step reports them. This module imports the standard library alone."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities under the model's own distribution, before bias, penalties, temperature and filters."""

    chosen: float
    """The drawn token's, or the known one's."""
    top_tokens: list[int]
    """The likeliest tokens, in descending order."""
    top_logprobs: list[float]
    """The log-probability of each of `top_tokens`."""
    rank: int
    """Number of tokens that are likelier than the chosen one, plus 1."""
