from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from loadtests.plan import Plan, PlanError, plan_of
from loadtests.shapes import Stage

DEFAULTS = {
    "workload": "mix",
    "dataset": "",
    "shape": "steady",
    "arrivals": "auto",
    "rate": "",
    "warmup": "auto",
    "run_time": 100,
    "num_users": 4,
}


def plan(**options: Any) -> Plan:
    return plan_of(Namespace(**DEFAULTS | options))


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f'{{"prompt": "a", "timestamp": {1000 * n}}}\n' for n in range(11)))
    return str(path)


def test_users_are_the_default() -> None:
    one = plan()
    assert (one.open, one.unit, one.warmup, one.stages) == (False, "users", Stage(4, 10), [Stage(4, 100)])
    assert one.budget(40) == 10
    assert one.requests(10) == 40


def test_a_step_run_is_judged_by_its_first_stage_and_scaled_for_it() -> None:
    one = plan(shape="step")
    assert one.judged == one.stages[:1]
    assert one.budget(40) == pytest.approx(100 / 3 / 40)


def test_a_rate_is_an_open_loop() -> None:
    one = plan(rate="2.5")
    assert (one.arrivals, one.stages) == ("poisson", [Stage(2.5, 100)])
    assert one.requests(1e9) == 250
    assert one.budget(40) == 25
    times = list(plan(rate="2", arrivals="fixed").times(0))
    assert (times[:2], len(times)) == ([0, 0.5], 220)


def test_several_rates_are_a_sweep() -> None:
    one = plan(rate="1,2,4,8", warmup="5s")
    assert [stage.load for stage in one.stages] == [1, 2, 4, 8]
    assert (one.shape, one.warmup, one.seconds) == ("step", Stage(1, 5), 100)


def test_a_trace_lasts_as_long_as_its_times(trace: str) -> None:
    one = plan(dataset=trace, run_time=None)
    assert (one.arrivals, one.warmup.seconds) == ("trace", 0)
    assert one.seconds == pytest.approx(10, abs=0.01)
    assert list(one.times(0)) == [*range(11)]
    cut = plan(dataset=trace, run_time=5, warmup="2s")
    assert list(cut.times(0)) == [*range(5)]
    assert (cut.warmup.seconds, cut.seconds) == (2, 3)
    assert plan(dataset=trace, rate="3").arrivals == "poisson"
    assert plan(dataset=trace, arrivals="users").arrivals == "users"


def test_durations_have_defaults() -> None:
    assert plan(run_time=None).seconds == 120
    assert plan(run_time=None, shape="soak").seconds == 3600
    assert plan(run_time=None, shape="soak").warmup.seconds == 30


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"rate": "fast"}, "rate should be a number above zero"),
        ({"rate": "1,0"}, "rate should be"),
        ({"rate": "nan"}, "rate should be"),
        ({"arrivals": "poisson"}, "arrivals poisson need a rate"),
        ({"arrivals": "users", "rate": "1"}, "arrivals users have no rate"),
        ({"arrivals": "trace"}, "need a dataset with timestamps"),
        ({"rate": "1,2", "shape": "spike"}, "cannot have the shape spike"),
        ({"warmup": "soon"}, "warmup should be a time"),
        ({"dataset": "/none.jsonl"}, "/none.jsonl: No such file"),
    ],
)
def test_what_contradicts_itself_is_told(options: dict[str, str], word: str) -> None:
    with pytest.raises(PlanError, match=word):
        plan(**options)


def test_a_trace_has_its_own_times(trace: str) -> None:
    with pytest.raises(PlanError, match="cannot have the shape soak"):
        plan(dataset=trace, shape="soak")
    with pytest.raises(PlanError, match="leaves nothing"):
        plan(dataset=trace, warmup="2m")
