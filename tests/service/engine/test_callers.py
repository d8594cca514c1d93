"""What one caller may have beside the others: completions at work and waiting, tokens a minute, time to wait."""

import pytest

from model.sampling_params import SamplingParams
from service.engine.callers import NO_LIMITS, CallerLimits
from service.engine.core import EngineCore
from service.engine.messages import Cancel, Delta, EngineRequest, Submit
from tests.service.engine.fakes import FakeRunner, output_alone


class Engine:
    """A core whose clock stands still unless it is told otherwise."""

    def __init__(self, limits: CallerLimits = NO_LIMITS, max_running: int = 4) -> None:
        self.now = 0.0
        self.core = EngineCore(
            FakeRunner(256, 4), token_budget=16, max_running=max_running, caller_limits=limits, clock=lambda: self.now
        )
        self.ids = 0
        self.deltas: dict[int, list[Delta]] = {}

    def submit(self, caller: str = "", prompt: int = 3, max_tokens: int = 2, patience: float | None = None) -> int:
        id, self.ids = self.ids, self.ids + 1
        params = SamplingParams(max_tokens=max_tokens)
        self.core.submit(Submit(id, EngineRequest([id % 8] * prompt, params, caller=caller, patience=patience)))
        return id

    def step(self) -> bool:
        report = self.core.step()
        self.core.check()
        for delta in report.deltas if report else ():
            self.deltas.setdefault(delta.id, []).append(delta)
        return report is not None

    def finish(self) -> None:
        while self.step():
            pass

    def reason(self, id: int) -> str | None:
        return self.deltas[id][-1].finish_reason if id in self.deltas else None

    def code(self, id: int) -> str | None:
        refusal = self.deltas[id][-1].refusal
        return refusal.code if refusal else None


def test_a_caller_runs_no_more_than_its_share_and_others_pass_it() -> None:
    engine = Engine(CallerLimits(running=1))
    mine = [engine.submit("a", max_tokens=3) for _ in range(3)]
    other = engine.submit("b", max_tokens=3)
    engine.step()
    assert set(engine.deltas) == {mine[0], other}
    engine.finish()
    assert {engine.reason(id) for id in (*mine, other)} == {"length"}


def test_what_a_caller_may_not_queue_is_refused_and_nobody_else_notices() -> None:
    engine = Engine(CallerLimits(running=1, waiting=2))
    mine = [engine.submit("a") for _ in range(5)]
    other = engine.submit("b")
    engine.finish()
    assert [engine.reason(id) for id in mine] == ["length"] * 3 + ["refused"] * 2
    assert engine.code(mine[-1]) == "key_queue_full"
    assert engine.reason(other) == "length"


def test_those_that_run_at_once_do_not_count_as_waiting() -> None:
    engine = Engine(CallerLimits(waiting=1), max_running=3)
    ids = [engine.submit("a") for _ in range(5)]
    engine.finish()
    assert [engine.reason(id) for id in ids] == ["length"] * 4 + ["refused"]


@pytest.mark.parametrize("end", ["finish", "cancel", "expire"])
def test_places_come_back_however_a_request_ends(end: str) -> None:
    engine = Engine(CallerLimits(running=1, waiting=1))
    ids = [engine.submit("a", patience=1.0), engine.submit("a", patience=1.0)]
    engine.step()
    match end:
        case "finish":
            engine.finish()
        case "cancel":
            for id in ids:
                engine.core.cancel(Cancel(id))
        case "expire":
            engine.now = 2.0
    engine.finish()
    again = [engine.submit("a"), engine.submit("a")]
    engine.finish()
    assert [engine.reason(id) for id in again] == ["length", "length"]


def test_tokens_of_a_minute_are_refilled_steadily() -> None:
    engine = Engine(CallerLimits(tokens_per_minute=60))
    first = engine.submit("a", prompt=50, max_tokens=20)
    engine.finish()
    engine.now = 9.0
    refused, other = engine.submit("a"), engine.submit("b")
    engine.finish()
    assert [engine.reason(id) for id in (first, refused, other)] == ["length", "refused", "length"]
    refusal = engine.deltas[refused][-1].refusal
    assert refusal is not None
    assert refusal.code == "key_tokens_exceeded"
    # 70 of 60 were used, 9 have come back: after two more one is there.
    assert refusal.retry_after == pytest.approx(2.0)
    engine.now += refusal.retry_after
    later = engine.submit("a")
    engine.finish()
    assert engine.reason(later) == "length"


def test_a_request_whose_time_is_over_never_begins() -> None:
    engine = Engine(max_running=1)
    running = engine.submit(max_tokens=30, patience=1.0)
    waiting, patient = engine.submit(patience=5.0), engine.submit()
    engine.step()
    engine.now = 5.0
    engine.step()
    assert engine.reason(waiting) is None
    engine.now = 5.1
    engine.step()
    assert (engine.reason(waiting), engine.code(waiting)) == ("refused", "deadline_exceeded")
    assert engine.deltas[waiting][-1].tokens == []
    engine.finish()
    assert [engine.reason(id) for id in (running, patient)] == ["length", "length"]


def test_a_request_that_was_preempted_has_begun_in_time() -> None:
    now = 0.0

    def clock() -> float:
        return now

    core = EngineCore(FakeRunner(6, 2), token_budget=16, max_running=4, clock=clock)
    params = SamplingParams(max_tokens=6)
    for id in range(3):
        core.submit(Submit(id, EngineRequest([id], params, patience=1.0)))
    got: dict[int, list[int]] = {id: [] for id in range(3)}
    while report := core.step():
        now += 1.0
        for delta in report.deltas:
            assert delta.finish_reason != "refused"
            got[delta.id] += delta.tokens
    assert core.stats().totals.preemptions
    assert got == {id: output_alone([id], params)[0] for id in range(3)}
