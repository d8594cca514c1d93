"""What both forms of log-probabilities share."""

LEAST = -9999.0
"""Stands for minus infinity, which JSON cannot write; OpenAI's choice."""


def finite(logprob: float) -> float:
    """`logprob`, or LEAST if it is below that."""
    return max(logprob, LEAST)
