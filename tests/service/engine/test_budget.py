"""The tokens of a step are shared among decoding requests, the oldest prompt and the shortest ones."""

import pytest

from service.engine.blocks import BlockPool
from service.engine.scheduler import Scheduler
from tests.service.engine.bench import Bench, sizes


def test_a_prompt_is_computed_in_chunks_and_drawn_from_once_at_its_end() -> None:
    bench = Bench(8, 4, token_budget=8)
    request = bench.add(list(range(1, 8)) * 2 + [1, 2, 3])
    plans = [bench.step()[0] for _ in range(4)]
    assert [sizes(plan) for plan in plans] == [[8], [8], [1], [1]]
    assert [bool(plan.chunks[0].draws) for plan in plans] == [False, False, True, True]
    assert [plan.chunks[0].start for plan in plans] == [0, 8, 16, 17]
    assert len(request.output) == 2


def test_a_long_prompt_does_not_stall_decoding() -> None:
    bench = Bench(32, 4, token_budget=8)
    first, second = bench.add([1], max_tokens=20), bench.add([2], max_tokens=20)
    bench.step()
    long = bench.add([3] * 50)
    for count in range(2, 11):
        plan, deltas = bench.step()
        assert sizes(plan)[:3] == [1, 1, min(6, 50 - 6 * (count - 2))]
        assert [len(first.output), len(second.output)] == [count, count]
        assert {delta.id for delta in deltas} >= {first.id, second.id}
    assert len(long.output) == 1


def shares(bench: Bench) -> dict[int, int]:
    """How many tokens the next step computes for each request, by its first token."""
    plan, _ = bench.step()
    return {(chunk.draws[0].prompt if chunk.draws else chunk.tokens)[0]: len(chunk.tokens) for chunk in plan.chunks}


def test_the_shortest_prompts_go_first_but_for_a_quarter_that_is_the_oldest_ones() -> None:
    bench = Bench(64, 4, token_budget=8)
    for token, length in [(1, 20), (2, 9), (3, 3)]:
        bench.add([token] * length)
    assert shares(bench) == {1: 2, 3: 3, 2: 3}
    assert shares(bench) == {3: 1, 1: 1, 2: 6}
    assert shares(bench) == {3: 1, 2: 1, 1: 6}


def test_a_short_prompt_passes_a_dozen_long_ones() -> None:
    bench = Bench(256, 4, token_budget=32, max_running=16)
    for id in range(12):
        bench.add([id % 7] * (50 + id))
    bench.step()
    short = bench.add([7] * 5)
    bench.step()
    assert len(short.output) == 1


def test_short_prompts_without_end_do_not_starve_a_long_one() -> None:
    bench = Bench(256, 4, token_budget=16)
    long = bench.add([1] * 60, max_tokens=1)
    steps = 0
    while not long.ended:
        for _ in range(4):
            bench.add([2 + steps % 5] * 4, max_tokens=1)
        bench.step()
        steps += 1
    assert steps <= 60 // (16 // 4)


def test_a_budget_that_stalls_somebody_is_refused() -> None:
    with pytest.raises(ValueError, match="token_budget"):
        Scheduler(BlockPool(4, 4), token_budget=7, max_running=8)
