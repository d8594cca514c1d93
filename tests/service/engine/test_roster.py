"""Who waits, who runs, and who makes room where blocks are short."""

from itertools import cycle

import pytest

from model.sampling_params import SamplingParams
from service.engine.request import Request
from tests.service.engine.bench import NOW, Bench, sizes
from tests.service.engine.fakes import output_alone


def test_the_number_of_running_requests_is_limited() -> None:
    bench = Bench(32, 4, max_running=2)
    for _ in range(3):
        bench.add([1, 2], max_tokens=2)
    assert (sizes(bench.step()[0]), bench.scheduler.running, bench.scheduler.waiting) == ([2, 2], 2, 1)
    bench.step()
    assert sizes(bench.step()[0]) == [2]


def test_while_the_oldest_prompt_waits_for_blocks_nobody_takes_any() -> None:
    bench = Bench(4, 4)
    bench.add([1] * 9, max_tokens=3)
    bench.step()
    bench.add([2] * 12, max_tokens=1)
    small = bench.add([3], max_tokens=1)
    bench.step()
    assert not small.blocks
    assert bench.scheduler.waiting == 2


def test_the_newest_request_makes_room_and_loses_nothing() -> None:
    bench = Bench(6, 2)
    requests = [bench.add([id], max_tokens=6) for id in range(3)]
    newest = requests[-1]
    for _ in range(4):
        assert sizes(bench.step()[0]) == [1, 1, 1]
    later = bench.add([7], max_tokens=1)
    assert sizes(bench.step()[0]) == [1, 1]
    assert (list(newest.blocks), newest.computed, len(newest.output)) == ([], 0, 4)
    assert bench.scheduler.counters.preemptions == 1

    bench.finish()
    chunks = [chunk for plan in bench.runner.plans[5:] for chunk in plan.chunks]
    first = next(chunk for chunk in chunks if chunk.draws and chunk.draws[0].output is newest.output)
    assert (first.start, list(first.tokens)) == (0, [2, *newest.output[:4]])
    for request in [*requests, later]:
        assert request.output == output_alone(request.prompt, request.params)[0]
    assert bench.scheduler.counters.prompt_tokens == 4
    assert bench.scheduler.counters.generated_tokens == 3 * 6 + 1


def test_a_newcomer_leaves_room_for_those_who_run_to_grow() -> None:
    bench = Bench(4, 2)
    bench.add([1] * 5, max_tokens=3)
    bench.step()
    newcomer = bench.add([2], max_tokens=4)
    bench.step()
    assert (bench.pool.available, len(newcomer.blocks)) == (1, 0)
    bench.finish()
    assert bench.scheduler.counters.preemptions == 0


def test_who_may_decode_after_blocks_were_dealt_out_waits_for_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a request whose mask is ready in the middle of planning."""
    bench = Bench(16, 1)
    request = bench.add([1, 2, 3], logprobs=1)
    bench.step()
    awaits_mask = cycle([True, False, False])
    monkeypatch.setattr(Request, "awaits_mask", property(lambda _: next(awaits_mask)))
    plans = [bench.scheduler.plan(NOW) for _ in range(2)]
    assert [plan is None for plan in plans] == [True, False]
    for plan in plans[1:]:
        assert plan is not None
        assert all(chunk.start < len(chunk.blocks) for chunk in plan.chunks)
    assert len(request.blocks) == 4


def test_a_request_that_can_never_fit_ends_at_once() -> None:
    bench = Bench(4, 4)
    delta = bench.scheduler.add(Request(0, [1] * 9, SamplingParams(max_tokens=8)))
    assert delta is not None
    assert delta.finish_reason == "error"
    assert not bench.scheduler.has_work
    bench.add([1] * 9, max_tokens=7)
    assert bench.finish()[-1].finish_reason == "length"
