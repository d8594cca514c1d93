"""What a probe shows, and the lengths that fit into a time."""

import statistics

import pytest

from loadtests import pace as module
from loadtests.client import Client
from loadtests.pace import AT_MOST, OUTPUT_TOKENS, PROMPT_TOKENS, Pace, fitting_scale, pace_of, probe, turn_seconds
from loadtests.sse import Answer
from loadtests.workloads import WORKLOADS
from tests.loadtests.fake_server import fake_server

SLOW = Pace(per_prompt_token=0.01, per_output_token=0.1)


def answer(ttft: float | None, gaps: list[float], seconds: float = 9.0, **more: object) -> Answer:
    return Answer(0.0, seconds, ttft, gaps, **more)  # type: ignore[arg-type]


def test_the_pace_is_that_of_the_answers() -> None:
    pace = pace_of([answer(6.4, [0.1, 0.3]), answer(3.2, [0.2]), answer(12.8, [0.2])])
    assert pace == Pace(pytest.approx(0.1), pytest.approx(0.2))
    assert pace.seconds(10, 20) == pytest.approx(5.0)


def test_an_answer_that_did_not_come_in_time_shows_the_least_it_takes() -> None:
    assert pace_of([answer(None, [], 32.0, abandoned=True)]) == Pace(0.5, 0.5)
    assert pace_of([answer(None, [], error="busy")]) is None
    assert pace_of([]) is None


def test_a_probe_asks_as_many_times_at_once_as_there_are_users() -> None:
    with fake_server(pace=0.01) as server, Client(server.url) as client:
        target = client.discover()
        for users, asked in ((2, 2), (100, AT_MOST)):
            server.bodies.clear()
            answers = probe(target, users)
            assert len(answers) == len(server.bodies) == asked
            assert {body["max_tokens"] for body in server.bodies} == {OUTPUT_TOKENS}
            assert {server.prompt_tokens(body) for body in server.bodies} == {PROMPT_TOKENS}
            pace = pace_of(answers)
            assert pace
            # A first token that is read late on a busy machine makes the rest of the answer look faster.
            assert pace.per_output_token > 0.9 * 0.01


def test_a_probe_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.5)
    with fake_server(pace=0.3) as server, Client(server.url) as client:
        (got,) = probe(client.discover(), 1)
    assert got.abandoned
    assert got.ttft


@pytest.mark.parametrize("workload", sorted(WORKLOADS))
@pytest.mark.parametrize("budget", [3.0, 8.0])
def test_a_scaled_turn_takes_the_time_there_is(workload: str, budget: float) -> None:
    scale = fitting_scale(WORKLOADS[workload], SLOW, None, budget)
    assert 0.85 * budget < turn_seconds(WORKLOADS[workload].scaled(scale), SLOW, None) < 1.02 * budget


def test_lengths_are_never_multiplied_by_more_than_one_nor_scaled_away() -> None:
    mix = WORKLOADS["mix"]
    assert fitting_scale(mix, SLOW, None, 1e6) == 1.0
    least = fitting_scale(mix, SLOW, None, 1e-6)
    assert 3 < mix.scaled(least).output.mean <= 4
    assert statistics.mean([mix.scaled(least).think, 0]) > 0
