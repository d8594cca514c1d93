"""How long a step may take before its engine is given up, judged by how long steps have taken. It reads no clock."""

from bisect import bisect_left

from service.engine.messages import STEP_TOKENS

SLACK = 10.0
"""How many times as slow as the slowest step of its size the next may be: a machine's cores may be shared."""


class Pace:
    """The slowest step of each size so far."""

    def __init__(self) -> None:
        self._slowest: dict[int, float] = {}

    def add(self, tokens: int, seconds: float) -> None:
        """Note a step that has ended."""
        size = _size(tokens)
        self._slowest[size] = max(self._slowest.get(size, 0.0), seconds)

    def patience(self, tokens: int) -> float | None:
        """Seconds that a step of so many tokens may take; None while none of at least half its size has been seen."""
        size = _size(tokens)
        known = [seconds * 2.0 ** (size - seen) for seen, seconds in self._slowest.items() if size - 1 <= seen <= size]
        return SLACK * max(known) if known else None


def _size(tokens: int) -> int:
    """Which of the powers of two a step's tokens come up to."""
    return bisect_left(STEP_TOKENS, tokens)
