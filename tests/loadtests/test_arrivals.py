import statistics
from itertools import pairwise

import pytest

from loadtests.arrivals import ARRIVALS, fixed, poisson
from loadtests.shapes import Stage

STAGES = [Stage(2.0, 1000.0), Stage(0.5, 2000.0)]


@pytest.mark.parametrize("arrivals", ARRIVALS.values())
def test_each_stage_has_its_rate(arrivals: object) -> None:
    times = list(arrivals(STAGES, 0))  # type: ignore[operator]
    assert times == sorted(times)
    assert sum(time < 1000 for time in times) == pytest.approx(2000, rel=0.1)
    assert sum(time >= 1000 for time in times) == pytest.approx(1000, rel=0.1)
    assert max(times) < 3000


def test_a_fixed_rate_has_equal_distances() -> None:
    assert list(fixed([Stage(2, 1.0), Stage(1, 3.0)], 0)) == [0, 0.5, 1, 2, 3]


def test_poisson_distances_spread_as_much_as_they_last_and_depend_on_the_seed() -> None:
    gaps = [after - before for before, after in pairwise(poisson(STAGES[:1], 0))]
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.1)
    assert list(poisson(STAGES, 0)) == list(poisson(STAGES, 0)) != list(poisson(STAGES, 1))
