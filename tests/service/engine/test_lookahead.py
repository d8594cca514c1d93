"""A step is planned while the one before is in flight: each continues the other, and drops what came to nothing."""

import pytest

from model.contract import INVALID_TOKEN
from service.engine.messages import Delta
from tests.service.engine.bench import NOW, Bench, follows, sizes, untimed
from tests.service.engine.fakes import next_token, output_alone


def test_a_step_continues_what_the_step_in_flight_draws() -> None:
    bench = Bench(32, 4, token_budget=10, lookahead=1)
    long = bench.add([1] * 12)
    assert sizes(bench.start()) == [10]
    short = [bench.add(prompt) for prompt in ([2] * 3, [3] * 4)]
    second = bench.start()
    assert (sizes(second), follows(second)) == ([2, 3, 4], [None] * 3)
    assert bench.land() == []
    third = bench.start()
    assert (sizes(third), follows(third)) == ([1, 1, 1], [0, 1, 2])
    assert [chunk.tokens for chunk in third.chunks] == [[INVALID_TOKEN]] * 3
    assert [chunk.start for chunk in third.chunks] == [12, 3, 4]
    assert [draw.index for chunk in third.chunks for draw in chunk.draws] == [1, 1, 1]
    assert long.output == []
    assert [delta.id for delta in bench.land()] == [0, 1, 2]
    bench.scheduler.cancel(0)
    fourth = bench.start()
    assert follows(fourth) == [1, 2]
    bench.finish()
    for request in short:
        assert request.output == output_alone(request.prompt, request.params)[0]


def test_what_was_planned_counts_once_it_has_landed() -> None:
    bench = Bench(8, 4, token_budget=8, lookahead=1)
    bench.add([1] * 12)
    bench.start()
    bench.start()
    assert bench.scheduler.counters.prompt_tokens == 0
    bench.land()
    assert bench.scheduler.counters.prompt_tokens == 8
    bench.land()
    assert (bench.scheduler.counters.prompt_tokens, bench.scheduler.counters.generated_tokens) == (12, 1)


@pytest.mark.parametrize("fails", [False, True])
def test_what_steps_in_flight_do_for_a_cancelled_request_is_dropped(fails: bool) -> None:
    bench = Bench(8, 4, lookahead=1)
    request = bench.add([1, 2])
    bench.start()
    bench.start()
    assert untimed([bench.scheduler.cancel(0)]) == [Delta(0, [], None, finish_reason="abort")]
    assert bench.scheduler.cancel(0) is None
    assert bench.pool.used == 0
    for _ in range(2):
        assert (bench.scheduler.fail("broken") if fails else bench.land()) == []
    assert request.output == []
    assert (bench.scheduler.counters.prompt_tokens, bench.scheduler.counters.generated_tokens) == (0, 0)


def test_a_token_after_a_stop_token_is_dropped() -> None:
    """Its key and value are not found either, though its block is full of what the request knew at its end."""
    bench = Bench(8, 2, lookahead=1)
    stop = next_token([1, 2, 3])
    bench.add([1, 2, 3], stop_token_ids=(stop,))
    bench.start()
    bench.runner.poisoned_chunks = {0}
    bench.start()
    assert untimed(bench.land()) == [Delta(0, [stop], None, finish_reason="stop")]
    assert bench.pool.used == 0
    other = bench.add([1, 2, 3, stop, 5])
    bench.start()
    assert other.cached_tokens == 2
    assert bench.land() == []
    assert bench.scheduler.counters.generated_tokens == 1
    bench.finish()
    assert other.output == output_alone(other.prompt, other.params)[0]


def test_a_block_given_back_in_flight_serves_the_next_at_once() -> None:
    bench = Bench(2, 2, lookahead=1)
    bench.add([1], max_tokens=3, stop_token_ids=(next_token([1]),))
    bench.start()
    (late,) = bench.start().chunks
    other = bench.add([2, 3, 4], max_tokens=1)
    assert bench.land()[0].finish_reason == "stop"
    bench.start()
    assert late.blocks[0] in other.blocks
    bench.finish()
    assert other.output == output_alone(other.prompt, other.params)[0]


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_nothing_is_computed_behind_the_last_token(max_tokens: int) -> None:
    bench = Bench(1, 4, lookahead=1)
    bench.add([1], max_tokens=max_tokens)
    for _ in range(max_tokens - 1):
        bench.start()
        if len(bench.runner.in_flight) > 1:
            bench.land()
    bench.start()
    while bench.runner.in_flight:
        assert bench.scheduler.plan(NOW) is None
        deltas = bench.land()
    assert deltas[0].finish_reason == "length"


def test_a_penalty_waits_for_no_token_in_flight() -> None:
    """What was drawn is remembered where it was drawn."""
    bench = Bench(8, 4, lookahead=1)
    bench.add([1])
    bench.add([2], max_tokens=2, presence_penalty=0.5)
    assert sizes(bench.start()) == [1, 1]
    assert follows(bench.start()) == [0, 1]


@pytest.mark.parametrize(("max_tokens", "preemptions"), [(4, 0), (7, 1)])
def test_nobody_is_preempted_before_the_step_in_flight_has_landed(max_tokens: int, preemptions: int) -> None:
    """Four steps fill the cache; the fourth may end the older request, which makes room for the other."""
    bench = Bench(4, 2, lookahead=1)
    older, newer = bench.add([1], max_tokens=max_tokens), bench.add([2], max_tokens=7)
    bench.start()
    for _ in range(3):
        assert sizes(bench.start()) == [1, 1]
        bench.land()
    assert bench.scheduler.plan(NOW) is None
    assert (bench.scheduler.running, bench.scheduler.counters.preemptions) == (2, 0)
    bench.land()
    bench.start()
    assert bench.scheduler.counters.preemptions == preemptions
    bench.finish()
    for request in (older, newer):
        assert request.output == output_alone(request.prompt, request.params)[0]


def test_what_follows_a_token_that_is_none_is_dropped() -> None:
    bench = Bench(16, 2, lookahead=1)
    bench.add([1] * 5)
    other = bench.add([2] * 5)
    bench.runner.poisoned_chunks = {0}
    bench.start()
    bench.start()
    assert [(delta.id, delta.finish_reason) for delta in bench.land()] == [(0, "error"), (1, None)]
    again = bench.add([1] * 5)
    bench.start()
    assert again.cached_tokens == 0
    assert [delta.id for delta in bench.land()] == [1]
    bench.finish()
    for request in (other, again):
        assert request.output == output_alone(request.prompt, request.params)[0]


def test_what_follows_a_failed_step_is_dropped() -> None:
    bench = Bench(16, 2, lookahead=1)
    bench.add([1] * 5)
    bench.runner.failure = RuntimeError()
    bench.start()
    other = bench.add([2] * 5)
    assert follows(bench.start()) == [0, None]
    with pytest.raises(RuntimeError):
        bench.land()
    assert [(delta.id, delta.finish_reason) for delta in bench.scheduler.fail("broken")] == [(0, "error")]
    assert [delta.id for delta in bench.land()] == [1]
    bench.finish()
    assert other.output == output_alone(other.prompt, other.params)[0]
