import itertools
from unittest.mock import Mock

import pytest

from model.contract import DeviceLostError
from model.sampling_params import SamplingParams
from service.engine.core import EngineCore
from service.engine.messages import STEP_TOKENS, Cancel, Delta, EngineRequest, RequestTimes, Submit
from tests.service.engine.fakes import VOCAB_SIZE, FakeRunner, next_token, output_alone


@pytest.fixture(params=[0, 1])
def lookahead(request: pytest.FixtureRequest) -> int:
    """Of the runner. Both must give the same outputs."""
    ahead: int = request.param
    return ahead


def make_core(runner: FakeRunner, token_budget: int = 16, max_running: int = 8) -> EngineCore:
    ticks = itertools.count()
    return EngineCore(runner, token_budget=token_budget, max_running=max_running, clock=lambda: float(next(ticks)))


def submit(id: int, prompt: list[int], max_tokens: int = 4, logprobs: int | None = None) -> Submit:
    return Submit(id, EngineRequest(prompt, SamplingParams(max_tokens=max_tokens, logprobs=logprobs)))


def finish(core: EngineCore) -> dict[int, list[Delta]]:
    deltas: dict[int, list[Delta]] = {}
    for _ in range(1000):
        report = core.step()
        if report is None:
            core.check()
            assert not core.has_work
            assert core.stats().blocks_used == 0
            return deltas
        for delta in report.deltas:
            deltas.setdefault(delta.id, []).append(delta)
    raise AssertionError("the engine does not come to rest")


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


def test_an_idle_engine_does_nothing(lookahead: int) -> None:
    runner = FakeRunner(4, 4, lookahead)
    core = make_core(runner)
    assert not core.has_work
    assert core.step() is None
    assert runner.plans == []


def test_many_requests_get_what_each_gets_alone(lookahead: int) -> None:
    core = make_core(FakeRunner(8, 4, lookahead))
    messages = [submit(id, [id % VOCAB_SIZE] * (1 + id % 5), max_tokens=1 + id) for id in range(12)]
    for message in messages:
        core.submit(message)
    deltas = finish(core)
    for message in messages:
        assert tokens_of(deltas[message.id]) == output_alone(message.request.prompt, message.request.params)[0]
        assert [delta.finish_reason for delta in deltas[message.id]] == [None] * message.id + ["length"]


def test_logprobs_come_with_their_tokens_if_asked_for(lookahead: int) -> None:
    core = make_core(FakeRunner(8, 4, lookahead))
    core.submit(submit(0, [1], logprobs=1))
    core.submit(submit(1, [1]))
    deltas = finish(core)
    for delta in deltas[0]:
        assert delta.logprobs is not None
        assert [logprobs.top_tokens for logprobs in delta.logprobs] == [[token] for token in delta.tokens]
    assert all(delta.logprobs is None for delta in deltas[1])


def test_the_next_step_runs_before_the_one_before_it_is_reported() -> None:
    runner = FakeRunner(8, 4, lookahead=1)
    core = make_core(runner)
    core.submit(submit(0, [1], max_tokens=3))
    started, landed = [], []
    while core.step():
        started.append(len(runner.plans))
        landed.append(core.stats().totals.generated_tokens)
    assert (started, landed) == ([2, 3, 3], [1, 2, 3])
    assert not runner.in_flight


def test_a_step_that_computes_for_nobody_is_landed() -> None:
    runner = FakeRunner(8, 4, lookahead=1)
    core = make_core(runner)
    core.submit(Submit(0, EngineRequest([1], SamplingParams(max_tokens=9, stop_token_ids=(next_token([1]),)))))
    first, second = core.step(), core.step()
    assert first is not None
    assert second is not None
    assert [delta.finish_reason for delta in first.deltas] == ["stop"]
    assert second.deltas == []
    assert not runner.in_flight
    assert core.step() is None


@pytest.mark.parametrize("way", ["refusal", "failure"])
def test_a_step_that_fails_once_costs_nobody_a_token(way: str, caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner(16, 4)
    core = make_core(runner, token_budget=6, max_running=3)
    for id in range(4):
        core.submit(submit(id, [id] * 5, max_tokens=5))
    deltas: dict[int, list[Delta]] = {}
    for step in itertools.count():
        if step in (1, 4):
            setattr(runner, way, RuntimeError("secret"))
        if (report := core.step()) is None:
            break
        core.check()
        for delta in report.deltas:
            deltas.setdefault(delta.id, []).append(delta)
    assert len(caplog.records) == 2
    for id in range(4):
        assert tokens_of(deltas[id]) == output_alone([id] * 5, SamplingParams(max_tokens=5))[0]
        assert deltas[id][-1].finish_reason == "length"


def test_a_step_that_cannot_be_started_costs_nobody_a_token_looking_ahead() -> None:
    """Those that wait for a token of the step before get it first."""
    runner = FakeRunner(16, 4, lookahead=1)
    core = make_core(runner)
    for id in range(3):
        core.submit(submit(id, [id] * 5, max_tokens=5))
    core.step()
    runner.refusal = RuntimeError()
    deltas = [delta for report in iter(core.step, None) for delta in report.deltas]
    for id in range(3):
        mine = [delta for delta in deltas if delta.id == id]
        # The first token of each was reported before.
        assert tokens_of(mine) == output_alone([id] * 5, SamplingParams(max_tokens=5))[0][1:]
        assert mine[-1].finish_reason == "length"


def test_a_request_that_no_step_works_with_ends_alone(lookahead: int, caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner(16, 4, lookahead)
    core = make_core(runner)
    for id in range(4):
        core.submit(submit(id, [id] * (id + 1), max_tokens=3 + id))
    core.step()
    runner.faulty = {1, 7}
    core.submit(submit(7, [7, 7]))
    deltas = finish(core)
    for id in (1, 7):
        assert deltas[id][-1].finish_reason == "error"
        error = deltas[id][-1].error
        assert error is not None
        assert "\n" not in error
        assert "no step" not in error, "an exception's text is told to a client"
    for id in (0, 2, 3):
        alone = output_alone([id] * (id + 1), SamplingParams(max_tokens=3 + id))[0]
        assert tokens_of(deltas[id]) == alone[-len(tokens_of(deltas[id])) :]
        assert deltas[id][-1].finish_reason == "length"
    assert all(record.exc_info for record in caplog.records)


def test_a_step_that_is_run_again_forgets_what_the_failed_one_drew(lookahead: int) -> None:
    """It may have failed behind its draws, when their tokens had been counted."""
    runner = FakeRunner(16, 4, lookahead)
    core = make_core(runner)
    for id in range(3):
        core.submit(submit(id, [id] * 5, max_tokens=5))
    core.step()
    runner.refusal = RuntimeError("planted")
    before = len(runner.plans)
    core.step()
    again = runner.plans[before + 1 :][:3]
    assert [len(plan.chunks) for plan in again] == [1, 1, 1]
    assert all(draw.fresh for plan in again for draw in plan.draws())
    assert all(not draw.fresh for draw in runner.plans[before].draws())
    finish(core)


def test_a_step_that_cannot_start_behind_one_that_fails_ends_with_it(caplog: pytest.LogCaptureFixture) -> None:
    """The first fails where it lands, before the second is run again one request at a time."""
    runner = FakeRunner(16, 4, lookahead=1)
    core = make_core(runner)
    core.submit(submit(0, [1], max_tokens=9))
    core.step()
    runner.failure = RuntimeError("planted")
    core.step()
    core.submit(submit(1, [2], max_tokens=3))
    runner.refusal = RuntimeError("planted too")
    deltas = finish(core)
    assert deltas[0][-1].finish_reason == "error"
    assert tokens_of(deltas[1]) == output_alone([2], SamplingParams(max_tokens=3))[0]
    core.check()


def test_a_bug_in_planning_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch, lookahead: int) -> None:
    core = make_core(FakeRunner(16, 4, lookahead))
    core.submit(submit(0, [1]))
    monkeypatch.setattr(core._scheduler, "plan", Mock(side_effect=RuntimeError("planted")))
    with pytest.raises(RuntimeError, match="planted"):
        core.step()


def test_what_ran_beside_a_step_whose_result_is_lost_ends(caplog: pytest.LogCaptureFixture) -> None:
    """The step that was started after it has read what it left behind."""
    runner = FakeRunner(8, 4, lookahead=1)
    core = make_core(runner)
    core.submit(submit(0, [1], max_tokens=9))
    core.step()
    runner.failure = RuntimeError("secret\ndetail")
    deltas = finish(core)[0]
    assert deltas[-1].finish_reason == "error"
    assert tokens_of(deltas) == output_alone([1], SamplingParams(max_tokens=9))[0][1 : len(deltas)]
    assert deltas[-1].error is not None
    assert "secret" not in deltas[-1].error
    assert caplog.records[0].exc_info is not None


def test_what_a_failing_request_left_behind_is_not_found(lookahead: int) -> None:
    runner = FakeRunner(8, 2, lookahead)
    core = make_core(runner)
    runner.faulty = {1}
    core.submit(submit(0, [1, 2, 3, 4, 5]))
    assert finish(core)[0][-1].finish_reason == "error"
    runner.faulty = set()
    core.submit(submit(1, [1, 2, 3, 4, 5]))
    deltas = finish(core)
    assert [delta.cached_tokens for delta in deltas[1]] == [0] * 4
    assert deltas[1][-1].finish_reason == "length"


def test_a_lost_device_ends_the_engine_and_not_its_requests_one_by_one(lookahead: int) -> None:
    runner = FakeRunner(8, 4, lookahead)
    core = make_core(runner)
    runner.faulty, runner.broken = {1}, DeviceLostError
    core.submit(submit(0, [0]))
    core.submit(submit(1, [1]))
    with pytest.raises(DeviceLostError):
        core.step()


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (submit(7, []), "empty"),
        (submit(7, [1] * 30, max_tokens=3), "KV cache"),
        (submit(7, [1, VOCAB_SIZE]), "vocabulary"),
        (submit(7, [-1]), "vocabulary"),
        (submit(7, [2**63]), "vocabulary"),
        (Submit(7, EngineRequest([1], SamplingParams(max_tokens=1, logit_bias=((VOCAB_SIZE, 1.0),)))), "vocabulary"),
        (Submit(7, EngineRequest([1], SamplingParams(max_tokens=1, bad_words=((1, VOCAB_SIZE),)))), "vocabulary"),
        (
            Submit(7, EngineRequest([1], SamplingParams(max_tokens=3, min_tokens=3, stop_token_ids=(2, VOCAB_SIZE)))),
            "vocabulary",
        ),
    ],
)
def test_a_request_that_cannot_run_ends_alone(message: Submit, error: str, lookahead: int) -> None:
    core = make_core(FakeRunner(8, 4, lookahead))
    core.submit(message)
    core.submit(submit(8, [1]))
    deltas = finish(core)
    (refused,) = deltas[7]
    assert refused.finish_reason == "error"
    assert error in (refused.error or "")
    assert deltas[8][-1].finish_reason == "length"


def test_a_cancelled_request_ends_in_the_next_report(lookahead: int) -> None:
    runner = FakeRunner(8, 4, lookahead)
    core = make_core(runner)
    core.submit(submit(0, [1, 2, 3]))
    core.step()
    core.cancel(Cancel(0))
    assert core.stats().blocks_used == 0
    assert core.has_work
    report = core.step()
    assert report is not None
    assert [(delta.id, delta.tokens, delta.finish_reason) for delta in report.deltas] == [(0, [], "abort")]
    assert len(runner.plans) == 1 + lookahead
    assert not runner.in_flight
    core.cancel(Cancel(0))
    assert not core.has_work


def test_statistics_count_each_token_once(lookahead: int) -> None:
    """The second prompt hits what the first left, and preemption on the way counts nothing twice."""
    core = make_core(FakeRunner(6, 2, lookahead))
    core.submit(submit(0, [1, 2, 3, 4, 5]))
    finish(core)
    core.submit(submit(1, [1, 2, 3, 4, 6]))
    core.submit(submit(2, [7], max_tokens=8))
    core.submit(submit(3, [6, 5], max_tokens=8))
    deltas = finish(core)
    stats = core.stats()
    assert {id: deltas[id][0].cached_tokens for id in deltas} == {1: 4, 2: 0, 3: 0}
    assert stats.totals.preemptions > 0
    assert stats.totals.prefix_queries == 5 + 5 + 1 + 2
    assert stats.totals.prefix_hits == 4
    assert (stats.totals.prompt_tokens, stats.totals.cached_prompt_tokens) == (5 + 5 + 1 + 2, 4)
    assert stats.totals.generated_tokens == 4 + 4 + 8 + 8
    assert stats.blocks_total == 6
    assert (stats.running, stats.waiting) == (0, 0)


def test_statistics_add_up_the_seconds_of_steps() -> None:
    now = 0.0
    runner = FakeRunner(6, 2)
    core = EngineCore(runner, token_budget=16, max_running=8, clock=lambda: now)
    core.submit(submit(0, [1, 2, 3], max_tokens=3))
    core.step()
    assert core.stats().running == 1
    assert core.stats().blocks_used == 2
    finish(core)
    for phase, seconds in (("schedule", 2.0), ("deliver", 3.0), ("deliver", 4.0)):
        with core.measured(phase) as began:
            assert began == now
            now += seconds
    stats = core.stats()
    assert stats.totals.steps == 3
    assert (stats.forward_seconds, stats.sample_seconds) == (1.5, 0.75)
    assert (stats.schedule_seconds, stats.deliver_seconds) == (2.0, 7.0)


def test_planning_committing_and_reporting_are_measured() -> None:
    core = make_core(FakeRunner(6, 2))
    core.submit(submit(0, [1, 2, 3], max_tokens=3))
    finish(core)
    stats = core.stats()
    # The clock ticks whenever it is read: once within each of a step's parts.
    assert (stats.schedule_seconds, stats.deliver_seconds) == (3 * 2.0, 3 * 1.0)


def test_steps_are_counted_by_their_tokens(lookahead: int) -> None:
    runner = FakeRunner(600, 16, lookahead)
    core = make_core(runner, token_budget=9000)
    core.submit(submit(0, [1] * 5, max_tokens=3))
    finish(core)
    core.submit(submit(1, [2] * 8200, max_tokens=1))
    finish(core)
    runner.failure = RuntimeError()
    core.submit(submit(2, [3] * 4, max_tokens=1))
    finish(core)
    stats = core.stats()
    counted = dict(zip((*STEP_TOKENS, None), stats.totals.step_tokens, strict=True))
    assert {bound: count for bound, count in counted.items() if count} == {1: 2, 4: 2, 8: 1, None: 1}
    assert stats.totals.steps == 6
    assert stats.totals.computed_tokens == 5 + 2 + 8200 + 2 * 4


def test_a_request_is_told_how_long_it_was_where() -> None:
    """A second for each step; the second request waits until the first has ended."""
    now = 0.0
    core = EngineCore(FakeRunner(8, 4), token_budget=4, max_running=1, clock=lambda: now)
    for id in range(3):
        core.submit(submit(id, [id] * 6, max_tokens=3))
    deltas: dict[int, list[Delta]] = {}
    while report := core.step():
        for delta in report.deltas:
            deltas.setdefault(delta.id, []).append(delta)
        if 2 not in deltas and 1 in deltas:
            core.cancel(Cancel(2))
        now += 1.0
    assert [delta.times for delta in deltas[0]] == [RequestTimes(0, 1, decode) for decode in (0, 1, 2)]
    assert [delta.times for delta in deltas[1]] == [RequestTimes(4, 1, decode) for decode in (0, 1, 2)]
    assert [delta.times for delta in deltas[2]] == [RequestTimes(None, None, None)]
