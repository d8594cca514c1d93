"""The time that a step may take before its engine counts as hung, judged by the steps so far. It reads no clock."""

from bisect import bisect_left

from service.engine.messages import STEP_TOKENS

SLACK = 10.0
"""A step may take this many times as long as the slowest of its size, because a machine's cores may be shared."""


FADING = 0.99
"""Share of the slowest time that is left after another step: a pause of the whole machine is forgotten some day."""


class Pace:
    """The slowest step of each size, of those that are not long ago."""

    def __init__(self) -> None:
        self._slowest: dict[int, float] = {}

    def add(self, tokens: int, seconds: float) -> None:
        """Note the duration of a finished step of `tokens` tokens."""
        size = _size(tokens)
        self._slowest[size] = max(self._slowest.get(size, 0.0) * FADING, seconds)

    def quiet_seconds(self, tokens: int) -> float | None:
        """Seconds that a step of `tokens` tokens may take; None until a step of at least half its size was seen."""
        size = _size(tokens)
        known = [seconds * 2.0 ** (size - seen) for seen, seconds in self._slowest.items() if size - 1 <= seen <= size]
        return SLACK * max(known) if known else None


def _size(tokens: int) -> int:
    """Index of the smallest bound in `STEP_TOKENS` that is not below `tokens`."""
    return bisect_left(STEP_TOKENS, tokens)
