from collections.abc import Iterable
from itertools import cycle
from typing import Any

import msgspec
import pytest

from model.contract import INVALID_TOKEN, ChunkResult, StepPlan, StepResult
from model.sampling_params import SamplingParams
from service.engine.blocks import BlockPool
from service.engine.drafts import DraftPolicy, leave_open
from service.engine.messages import Delta, deltas_of
from service.engine.request import Request
from service.engine.scheduler import Scheduler
from tests.service.engine.fakes import VOCAB_SIZE, FakeRunner, next_token, output_alone

NOW = 0.0
"""For steps whose times nobody asks for."""


class Bench:
    """A scheduler, its pool and a fake runner."""

    def __init__(
        self, num_blocks: int, block_size: int, token_budget: int = 64, max_running: int = 8, lookahead: int = 0
    ) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.runner = FakeRunner(num_blocks, block_size, lookahead)
        self.scheduler = Scheduler(self.pool, token_budget=token_budget, max_running=max_running)
        self.ids = 0

    def add(self, prompt: list[int], max_tokens: int = 8, salt: str = "", **params: Any) -> Request:
        request = Request(self.ids, prompt, SamplingParams(max_tokens=max_tokens, **params), salt)
        self.ids += 1
        assert self.scheduler.add(request) is None
        return request

    def start(self) -> StepPlan:
        plan = self.scheduler.plan(NOW)
        assert plan is not None
        self.runner.start(plan)
        self.scheduler.check()
        return plan

    def land(self) -> list[Delta]:
        deltas = deltas_of(self.scheduler.commit(self.runner.in_flight[0].result(), NOW))
        self.scheduler.check()
        return deltas

    def step(self) -> tuple[StepPlan, list[Delta]]:
        return self.start(), self.land()

    def finish(self) -> list[Delta]:
        deltas: list[Delta] = []
        for _ in range(1000):
            if self.runner.in_flight:
                deltas += self.land()
            elif self.scheduler.has_work:
                self.start()
            else:
                assert self.pool.used == 0
                return deltas
        raise AssertionError("the scheduler does not come to rest")


def untimed(deltas: Iterable[Delta | None]) -> list[Delta]:
    return [msgspec.structs.replace(delta, times=None) for delta in deltas if delta is not None]


def sizes(plan: StepPlan) -> list[int]:
    return [len(chunk.tokens) for chunk in plan.chunks]


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


def test_a_request_that_left_itself_nothing_to_draw_is_refused() -> None:
    bench = Bench(8, 4)
    bench.add([1, 2], bad_words=((3,),))
    bench.runner.poisoned_chunks = {0}
    _, (delta,) = bench.step()
    assert delta.finish_reason == "refused"
    assert delta.refusal is not None
    assert delta.refusal.code == "nothing_to_draw"
    assert bench.pool.used == 0


def test_the_number_of_running_requests_is_limited() -> None:
    bench = Bench(32, 4, max_running=2)
    for _ in range(3):
        bench.add([1, 2], max_tokens=2)
    assert (sizes(bench.step()[0]), bench.scheduler.running, bench.scheduler.waiting) == ([2, 2], 2, 1)
    bench.step()
    assert sizes(bench.step()[0]) == [2]


def test_a_budget_that_stalls_somebody_is_refused() -> None:
    with pytest.raises(ValueError, match="token_budget"):
        Scheduler(BlockPool(4, 4), token_budget=7, max_running=8)


def test_while_the_oldest_prompt_waits_for_blocks_nobody_takes_any() -> None:
    bench = Bench(4, 4)
    bench.add([1] * 9, max_tokens=3)
    bench.step()
    bench.add([2] * 12, max_tokens=1)
    small = bench.add([3], max_tokens=1)
    bench.step()
    assert not small.blocks
    assert bench.scheduler.waiting == 2


def test_a_plan_copies_nothing_that_grows_with_the_context() -> None:
    bench = Bench(32, 4)
    request = bench.add([1] * 50, max_tokens=20)
    for _ in range(10):
        bench.step()
    (chunk,) = bench.start().chunks
    assert len(chunk.tokens) == 1
    assert chunk.blocks is request.blocks
    (draw,) = chunk.draws
    assert draw.prompt is request.prompt
    assert draw.output is request.output


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


@pytest.mark.parametrize("max_tokens", [1, 8])
def test_a_stop_token_ends_the_request_even_where_the_length_would(max_tokens: int) -> None:
    bench = Bench(8, 4)
    stop = next_token([1, 2])
    bench.add([1, 2], max_tokens=max_tokens, stop_token_ids=(stop,))
    assert untimed(bench.finish()) == [Delta(0, [stop], None, finish_reason="stop")]


def test_cancelling_frees_blocks_at_once() -> None:
    bench = Bench(8, 4, max_running=1)
    bench.add([1, 2])
    bench.add([3, 4])
    bench.step()
    for id in (0, 1):
        assert untimed([bench.scheduler.cancel(id)]) == [Delta(id, [], None, finish_reason="abort")]
        assert bench.scheduler.cancel(id) is None
    assert bench.pool.used == 0
    assert not bench.scheduler.has_work


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


def follows(plan: StepPlan) -> list[int | None]:
    return [chunk.follows for chunk in plan.chunks]


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


def test_every_prompt_token_counts_once_as_computed_or_as_found() -> None:
    """Even where a prompt, a part of which was found, is preempted half-way."""
    bench = Bench(19, 2, token_budget=4, max_running=2)
    bench.add([1] * 14, max_tokens=8)
    bench.add([1] * 6 + [2] * 19, max_tokens=1)
    bench.finish()
    counters = bench.scheduler.counters
    assert (counters.preemptions, counters.prefix_hits) == (1, 6)
    assert (counters.prompt_tokens, counters.cached_prompt_tokens) == (14 + 25, 6)


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


def test_a_request_that_can_never_fit_ends_at_once() -> None:
    bench = Bench(4, 4)
    delta = bench.scheduler.add(Request(0, [1] * 9, SamplingParams(max_tokens=8)))
    assert delta is not None
    assert delta.finish_reason == "error"
    assert not bench.scheduler.has_work
    bench.add([1] * 9, max_tokens=7)
    assert bench.finish()[-1].finish_reason == "length"


def drafting(draft_running: int, lookahead: int = 0) -> Bench:
    """A bench whose every guess is right for the token that the request's first prompt token says, else wrong."""
    bench = Bench(64, 4, lookahead=lookahead)

    def guess(request: Request, most: int) -> list[int]:
        tokens = [*request.tokens(0, request.known)]
        for place in range(most):
            right = next_token(tokens)
            tokens.append(right if place < request.prompt[0] else (right + 1) % VOCAB_SIZE)
        return tokens[request.known :]

    drafts = DraftPolicy(guess=guess, tokens=16, running=draft_running)
    bench.scheduler = Scheduler(bench.pool, token_budget=64, max_running=8, drafts=drafts)
    return bench


def drafted(bench: Bench, steps: int) -> list[list[int]]:
    """Sizes of the chunks of so many steps behind the prompts."""
    bench.step()
    return [sizes(bench.step()[0]) for _ in range(steps)]


def test_right_drafts_lead_to_more_and_wrong_ones_to_fewer() -> None:
    bench = drafting(draft_running=1)
    bench.add([7, 1], max_tokens=60)
    assert drafted(bench, 4) == [[5], [9], [9], [9]]  # Seven of eight are right.
    bench = drafting(draft_running=1)
    bench.add([0, 1], max_tokens=60)
    assert drafted(bench, 3) == [[5], [2], [2]]


@pytest.mark.parametrize("lookahead", [0, 1])
def test_drafting_ends_under_load_and_begins_again(lookahead: int) -> None:
    bench = drafting(draft_running=2, lookahead=lookahead)
    first, second = bench.add([7], max_tokens=60), bench.add([7, 7], max_tokens=60)
    bench.step()
    assert all(size > 1 for size in sizes(bench.start()))
    third = bench.add([7, 7, 7], max_tokens=3)  # While drafts are in flight.
    if lookahead:
        assert sizes(bench.start()) == [3]
        bench.land()
    bench.land()
    while third.blocks or not third.output:
        plan, _ = bench.step()
        assert all(len(chunk.tokens) == 1 for chunk in plan.chunks if chunk.start >= 3)
    assert all(size > 1 for size in sizes(bench.step()[0]))
    bench.finish()
    for request in (first, second, third):
        assert request.output == output_alone(request.prompt, request.params)[0]


def test_drafts_left_open_count_as_the_runner_guessed_them() -> None:
    bench = Bench(64, 4)
    drafts = DraftPolicy(guess=leave_open, tokens=4, running=8)
    bench.scheduler = Scheduler(bench.pool, token_budget=64, max_running=8, drafts=drafts)
    requests = [bench.add([first, 1], max_tokens=40) for first in range(4)]
    bench.finish()
    for request in requests:
        assert request.output == output_alone(request.prompt, request.params)[0]
    counters = bench.scheduler.counters
    assert counters.drafted_tokens / 4 < counters.accepted_tokens < counters.drafted_tokens
