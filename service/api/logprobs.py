"""Log-probabilities in JSON, for both forms of answers."""

LEAST = -9999.0
"""Stands for minus infinity, which JSON cannot write; the number is OpenAI's."""


def finite(logprob: float) -> float:
    """`logprob`, raised to LEAST if it is below."""
    return max(logprob, LEAST)
