"""A prefix that another request has computed is found, unless its numbers may be wrong."""

import pytest

from model.contract import INVALID_TOKEN, ChunkResult, StepResult
from service.engine.messages import Delta, deltas_of
from tests.service.engine.bench import NOW, Bench, sizes, untimed
from tests.service.engine.fakes import VOCAB_SIZE, output_alone


def test_equal_prompts_that_arrive_together_are_computed_once() -> None:
    bench = Bench(256, 16, token_budget=512, max_running=8)
    prompt = [position * position % VOCAB_SIZE for position in range(311)]
    requests = [bench.add(prompt, max_tokens=2) for _ in range(8)]
    deltas = bench.finish()
    assert bench.scheduler.counters.computed_tokens == 311 + 7 * (311 - 19 * 16) + 8
    assert sorted(request.cached_tokens or 0 for request in requests) == [0] + [19 * 16] * 7
    assert {delta.cached_tokens for delta in deltas} == {0, 19 * 16}


def test_a_common_beginning_of_a_much_longer_prompt_is_not_waited_for() -> None:
    bench = Bench(256, 4, token_budget=16)
    beginning = [1, 2, 3, 4]
    bench.add(beginning + [5] * 100)
    short = bench.add(beginning + [6] * 4, max_tokens=1)
    bench.step()
    assert short.ended


@pytest.mark.parametrize("way", ["cancel", "poison"])
def test_when_a_leader_ends_early_the_next_leads(way: str) -> None:
    bench = Bench(64, 4, token_budget=8)
    prompt = [1, 2, 3, 4] * 4
    leader, *followers = [bench.add(prompt, max_tokens=2) for _ in range(3)]
    if way == "poison":
        bench.runner.poisoned_chunks = {0}
    bench.step()
    assert [bool(request.blocks) for request in followers] == [False, False]
    if way == "cancel":
        bench.scheduler.cancel(leader.id)
    bench.finish()
    for request in followers:
        assert request.output == output_alone(prompt, request.params)[0]
    assert [request.cached_tokens for request in followers] == [0, 12]


def test_a_prefix_in_use_is_found_and_counted() -> None:
    bench = Bench(16, 4)
    first = bench.add([1] * 9)
    bench.step()
    second = bench.add([1] * 9)
    plan, deltas = bench.step()
    assert sizes(plan) == [1, 1]
    assert second.blocks[:2] == first.blocks[:2]
    assert [delta.cached_tokens for delta in deltas] == [0, 8]
    assert (bench.scheduler.counters.prefix_queries, bench.scheduler.counters.prefix_hits) == (18, 8)


def test_a_prompt_is_not_found_before_its_logits_were_seen() -> None:
    bench = Bench(16, 4, token_budget=8)
    bench.add([1] * 20)
    bench.step()
    bench.step()
    other = bench.add([1] * 5, max_tokens=1)
    bench.step()
    assert (list(other.blocks), other.cached_tokens) == ([], None)
    bench.step()
    assert other.cached_tokens == 4


@pytest.mark.parametrize("lookahead", [0, 1])
def test_what_a_request_has_drawn_is_found_by_another(lookahead: int) -> None:
    bench = Bench(16, 4, lookahead=lookahead)
    first = bench.add([1, 2, 3], max_tokens=20)
    bench.start()
    for _ in range(10):
        if lookahead:
            bench.start()
            bench.land()
        else:
            bench.land()
            bench.start()
    assert len(first.output) == 10
    other = bench.add([*first.prompt, *first.output, 5])
    bench.land()
    bench.start()
    assert other.cached_tokens == 12


def test_salts_do_not_share() -> None:
    bench = Bench(16, 4)
    bench.add([1] * 9, salt="a")
    bench.step()
    same, other = bench.add([1] * 9, salt="a"), bench.add([1] * 9, salt="b")
    bench.step()
    assert (same.cached_tokens, other.cached_tokens) == (8, 0)


@pytest.mark.parametrize("steps_before", [0, 1, 3])
def test_logits_that_are_no_numbers_end_the_request_and_leave_nothing_to_find(steps_before: int) -> None:
    bench = Bench(16, 2)
    bench.add([1] * 5)
    for _ in range(steps_before):
        bench.step()
    plan = bench.scheduler.plan(NOW)
    assert plan is not None
    plain = len(plan.decoding)
    result = StepResult([ChunkResult([INVALID_TOKEN], [None])] * len(plan.others), [INVALID_TOKEN] * plain)
    assert untimed(deltas_of(bench.scheduler.commit(result, NOW))) == [
        Delta(0, [], None, finish_reason="error", error="the model produced no finite logits"),
    ]
    assert bench.pool.used == 0
    again = bench.add([1] * 5)
    bench.step()
    assert again.cached_tokens == 0


def test_a_nan_in_an_early_chunk_reaches_nobody_else() -> None:
    bench = Bench(16, 2, token_budget=8)
    bench.add([1] * 12)
    bench.runner.poisoned_chunks = {0}
    bench.step()
    other = bench.add([1] * 12)
    deltas = bench.finish()
    assert [delta.finish_reason for delta in deltas if delta.id == 0] == ["error"]
    assert other.output == output_alone(other.prompt, other.params)[0]


def test_what_one_owner_failed_on_is_not_offered_by_the_other() -> None:
    bench = Bench(16, 2)
    bench.add([1] * 5)
    bench.step()
    bench.add([1] * 5)
    bench.runner.poisoned_chunks = {0}
    _, deltas = bench.step()
    assert [(delta.finish_reason, delta.cached_tokens) for delta in deltas] == [("error", 0), (None, 4)]
    third = bench.add([1] * 5)
    bench.step()
    assert third.cached_tokens == 0


def test_every_prompt_token_counts_once_as_computed_or_as_found() -> None:
    """Even where a prompt, a part of which was found, is preempted half-way."""
    bench = Bench(19, 2, token_budget=4, max_running=2)
    bench.add([1] * 14, max_tokens=8)
    bench.add([1] * 6 + [2] * 19, max_tokens=1)
    bench.finish()
    counters = bench.scheduler.counters
    assert (counters.preemptions, counters.prefix_hits) == (1, 6)
    assert (counters.prompt_tokens, counters.cached_prompt_tokens) == (14 + 25, 6)
