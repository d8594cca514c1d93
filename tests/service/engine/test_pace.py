import asyncio
from typing import cast

import pytest

from model.sampling_params import SamplingParams
from service.engine.core import EngineCore
from service.engine.messages import EngineRequest, EngineStats, Report, Submit
from service.engine.pace import SLACK, Pace
from service.processes.engine_config import EngineConfig
from service.processes.engine_keeper import UNSEEN, EngineKeeper
from tests.service.engine.fakes import FakeRunner


def test_a_step_may_take_several_times_as_long_as_the_slowest_of_its_size() -> None:
    pace = Pace()
    assert pace.quiet_seconds(1) is None
    pace.add(1, 0.01)
    pace.add(1, 0.02)
    assert pace.quiet_seconds(1) == SLACK * 0.02
    for _ in range(10):
        pace.add(1, 0.01)
    assert SLACK * 0.015 < (pace.quiet_seconds(1) or 0) < SLACK * 0.02
    for _ in range(1000):
        pace.add(1, 0.01)
    assert pace.quiet_seconds(1) == SLACK * 0.01, "a single pause is forgotten"
    pace.add(1, 0.02)
    pace.add(512, 3.0)
    assert pace.quiet_seconds(1) == SLACK * 0.02
    assert pace.quiet_seconds(300) == SLACK * 3.0
    assert pace.quiet_seconds(1024) == SLACK * 6.0
    assert pace.quiet_seconds(32) is None, "a step of one token says little of one of 32"
    assert pace.quiet_seconds(4096) is None


def test_every_step_is_announced_before_it_begins() -> None:
    told: list[float | None] = []
    now = 0.0

    def clock() -> float:
        return now

    runner = FakeRunner(64, 4)
    started = runner.start

    def slow(plan: object) -> object:
        nonlocal now
        assert len(told) == len(runner.plans) + 1
        now += 7.0
        return started(plan)  # type: ignore[arg-type]

    runner.start = slow  # type: ignore[method-assign, assignment]
    core = EngineCore(runner, token_budget=16, max_running=4, clock=clock, announce=told.append)
    core.submit(Submit(0, EngineRequest([1] * 9, SamplingParams(max_tokens=3))))
    while core.step():
        pass
    assert told == [None, None, SLACK * 7.0]


@pytest.mark.parametrize(("quiet_seconds", "silent"), [(0.0, 1), (30.0, 30), (None, UNSEEN)])
def test_a_keeper_waits_for_a_step_that_was_announced(quiet_seconds: float | None, silent: int) -> None:
    async def main() -> None:
        keeper = EngineKeeper(cast(EngineConfig, None), lambda status: None, timeout_seconds=1.0)
        keeper._receive(Report([], EngineStats(), quiet_seconds))
        assert keeper._silence == silent
        keeper._receive(Report([], EngineStats()))
        assert keeper._silence == 1.0

    asyncio.run(main())
