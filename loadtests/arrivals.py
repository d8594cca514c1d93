"""When the conversations of an open loop begin, whatever became of those before. Knows no Locust."""

import random
from collections.abc import Callable, Iterator, Sequence

from loadtests.shapes import Stage


def poisson(stages: Sequence[Stage], seed: int) -> Iterator[float]:
    """Times in seconds from the start, at exponentially distributed distances: users know nothing of each other."""
    rng = random.Random(f"{seed}/arrivals")
    return _spread(stages, rng.expovariate(1.0), lambda: rng.expovariate(1.0))


def fixed(stages: Sequence[Stage], seed: int) -> Iterator[float]:
    """Times in seconds from the start, at equal distances."""
    return _spread(stages, 0.0, lambda: 1.0)


ARRIVALS: dict[str, Callable[[Sequence[Stage], int], Iterator[float]]] = {"poisson": poisson, "fixed": fixed}


def _spread(stages: Sequence[Stage], due: float, gap: Callable[[], float]) -> Iterator[float]:
    """Arrivals whose distances are `gap` at a load of one a second; the first one comes after `due`."""
    start = 0.0
    for stage in stages:
        expected = stage.load * stage.seconds
        while due < expected:
            yield start + due / stage.load
            due += gap()
        due -= expected
        start += stage.seconds
