from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.contract import INVALID_TOKEN, SamplingParams, StepPlan, StepResult
from service.engine.blocks import BlockPool
from service.engine.messages import Delta
from service.engine.request import Request
from service.engine.scheduler import Scheduler
from tests.service.engine.fakes import VOCAB_SIZE, FakeRunner, next_token, output_alone


class Bench:
    """A scheduler, its pool and a fake runner."""

    def __init__(self, num_blocks: int, block_size: int, token_budget: int = 64, max_running: int = 8) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.runner = FakeRunner(num_blocks, block_size)
        self.scheduler = Scheduler(self.pool, token_budget=token_budget, max_running=max_running)
        self.ids = 0

    def add(self, prompt: list[int], max_tokens: int = 8, salt: str = "", **params: Any) -> Request:
        request = Request(self.ids, prompt, SamplingParams(max_tokens=max_tokens, **params), salt)
        self.ids += 1
        assert self.scheduler.add(request) is None
        return request

    def step(self) -> tuple[StepPlan, list[Delta]]:
        plan = self.scheduler.plan()
        deltas = self.scheduler.commit(plan, self.runner.run(plan))
        self.scheduler.check()
        return plan, deltas

    def finish(self) -> list[Delta]:
        deltas: list[Delta] = []
        for _ in range(1000):
            if not self.scheduler.has_work:
                assert self.pool.used == 0
                return deltas
            deltas += self.step()[1]
        raise AssertionError("the scheduler does not come to rest")


def sizes(plan: StepPlan) -> list[int]:
    return [len(chunk.tokens) for chunk in plan.chunks]


def test_a_prompt_is_computed_in_chunks_and_drawn_from_once_at_its_end() -> None:
    bench = Bench(8, 4, token_budget=8)
    request = bench.add(list(range(1, 8)) * 2 + [1, 2, 3])
    plans = [bench.step()[0] for _ in range(4)]
    assert [sizes(plan) for plan in plans] == [[8], [8], [1], [1]]
    assert [plan.chunks[0].draw is not None for plan in plans] == [False, False, True, True]
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


def test_prompts_share_the_budget_in_arrival_order() -> None:
    bench = Bench(32, 4, token_budget=8)
    for length in (5, 6, 4):
        bench.add([1] * length)
    assert [sizes(bench.step()[0]) for _ in range(3)] == [[5, 3], [1, 3, 4], [1, 1, 1]]


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


def test_a_later_small_request_does_not_overtake() -> None:
    bench = Bench(4, 4)
    bench.add([1] * 9, max_tokens=3)
    bench.add([2] * 12, max_tokens=1)
    small = bench.add([3], max_tokens=1)
    bench.step()
    assert small.blocks == []
    assert bench.scheduler.waiting == 2


def test_a_plan_copies_nothing_that_grows_with_the_context() -> None:
    bench = Bench(32, 4)
    request = bench.add([1] * 50, max_tokens=20)
    for _ in range(10):
        bench.step()
    (chunk,) = bench.scheduler.plan().chunks
    assert len(chunk.tokens) == 1
    assert chunk.blocks is request.blocks
    assert chunk.draw is not None
    assert chunk.draw.prompt is request.prompt
    assert chunk.draw.output is request.output


def test_the_newest_request_makes_room_and_loses_nothing() -> None:
    bench = Bench(6, 2)
    requests = [bench.add([id], max_tokens=6) for id in range(3)]
    newest = requests[-1]
    for _ in range(4):
        assert sizes(bench.step()[0]) == [1, 1, 1]
    later = bench.add([7], max_tokens=1)
    assert sizes(bench.step()[0]) == [1, 1]
    assert (newest.blocks, newest.computed, len(newest.output)) == ([], 0, 4)
    assert bench.scheduler.counters.preemptions == 1

    bench.finish()
    readmission = next(plan for plan in bench.runner.plans[5:] if newest.draw in [chunk.draw for chunk in plan.chunks])
    first = readmission.chunks[0]
    assert (first.draw, first.start, list(first.tokens)) == (newest.draw, 0, [2, *newest.output[:4]])
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
    assert (bench.pool.available, newcomer.blocks) == (1, [])
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
    bench.add([1] * 12)
    bench.step()
    other = bench.add([1] * 9, max_tokens=1)
    bench.step()
    assert other.cached_tokens == 0


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
    plan = bench.scheduler.plan()
    deltas = bench.scheduler.commit(plan, StepResult([INVALID_TOKEN], [None]))
    assert deltas == [
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
    assert bench.finish() == [Delta(0, [stop], None, finish_reason="stop")]


def test_cancelling_frees_blocks_at_once() -> None:
    bench = Bench(8, 4, max_running=1)
    bench.add([1, 2])
    bench.add([3, 4])
    bench.step()
    for id in (0, 1):
        delta = bench.scheduler.cancel(id)
        assert delta == Delta(id, [], None, finish_reason="abort")
        assert bench.scheduler.cancel(id) is None
    assert bench.pool.used == 0
    assert not bench.scheduler.has_work


@pytest.mark.parametrize("fails", [False, True])
def test_cancelling_during_a_step_waits_for_its_end(fails: bool) -> None:
    bench = Bench(8, 4)
    bench.add([1, 2])
    plan = bench.scheduler.plan()
    assert bench.scheduler.cancel(0) is None
    assert bench.scheduler.cancel(0) is None
    assert bench.pool.used == 1
    scheduler = bench.scheduler
    deltas = scheduler.fail(plan, "broken") if fails else scheduler.commit(plan, bench.runner.run(plan))
    assert deltas == [Delta(0, [], None, finish_reason="abort")]
    assert bench.pool.used == 0


def test_a_request_that_can_never_fit_ends_at_once() -> None:
    bench = Bench(4, 4)
    delta = bench.scheduler.add(Request(0, [1] * 9, SamplingParams(max_tokens=8)))
    assert delta is not None
    assert delta.finish_reason == "error"
    assert not bench.scheduler.has_work
    bench.add([1] * 9, max_tokens=7)
    assert bench.finish()[-1].finish_reason == "length"


@dataclass
class Watched:
    """A request of the machine below, with what it ought to get and what it has got."""

    request: Request
    expected: tuple[list[int], str]
    emitted: list[int] = field(default_factory=list)
    final: Delta | None = None
    cancelled: bool = False
    may_fail: bool = False


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of requests, steps, cancellations, NaNs and failing steps keeps the promises."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: list[Watched] = []
        self.plan: StepPlan | None = None

    @initialize(
        num_blocks=st.integers(2, 10) | st.integers(2, 64),
        block_size=st.integers(1, 16),
        max_running=st.integers(1, 6),
        spare=st.integers(0, 40),
    )
    def start(self, num_blocks: int, block_size: int, max_running: int, spare: int) -> None:
        self.budget, self.max_running = max_running + spare, max_running
        self.capacity = num_blocks * block_size
        self.pool = BlockPool(num_blocks, block_size)
        self.runner = FakeRunner(num_blocks, block_size)
        self.scheduler = Scheduler(self.pool, token_budget=self.budget, max_running=max_running)

    @property
    def live(self) -> list[Watched]:
        return [watched for watched in self.watched if watched.final is None]

    @rule(
        document=st.integers(0, 1),
        share=st.integers(1, 50),
        tail=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=1),
        salt=st.sampled_from(["", "", "salt"]),
        max_tokens=st.integers(1, 40),
        stops=st.sets(st.integers(0, VOCAB_SIZE - 1), max_size=1),
    )
    def add(self, document: int, share: int, tail: list[int], salt: str, max_tokens: int, stops: set[int]) -> None:
        """`share` percent of the cache as a prompt that starts like the other prompts of its document."""
        length = max(1, self.capacity * share // 100)
        prompt = [(position * (position + document)) % VOCAB_SIZE for position in range(length)] + tail
        max_tokens = min(max_tokens, max(1, self.capacity - length))
        params = SamplingParams(max_tokens=max_tokens, stop_token_ids=tuple(stops))
        watched = Watched(Request(len(self.watched), prompt, params, salt), output_alone(prompt, params))
        self.watched.append(watched)
        delta = self.scheduler.add(watched.request)
        if len(prompt) + max_tokens > self.capacity:
            assert delta is not None
            watched.may_fail = True
            self.take(delta)
        else:
            assert delta is None

    @precondition(lambda self: self.plan is None)
    @rule()
    def make_plan(self) -> None:
        live = self.live
        decoding = [watched.request for watched in live if watched.request.blocks and watched.request.behind == 1]
        self.plan = self.scheduler.plan()
        assert bool(self.plan.chunks) == bool(live)
        assert sum(sizes(self.plan)) <= self.budget
        assert self.scheduler.running <= self.max_running
        planned = {id(chunk.blocks) for chunk in self.plan.chunks if chunk.draw is not None}
        assert all(id(request.blocks) in planned for request in decoding if request.blocks)
        if live:
            assert any(chunk.blocks is live[0].request.blocks for chunk in self.plan.chunks)

    @precondition(lambda self: self.plan is not None and self.plan.chunks)
    @rule(index=st.integers(0, 100))
    def poison(self, index: int) -> None:
        """Prefers chunks without a draw: what is wrong with them shows only later."""
        assert self.plan is not None
        undrawn = [index for index, chunk in enumerate(self.plan.chunks) if chunk.draw is None]
        index = undrawn[0] if undrawn else index % len(self.plan.chunks)
        self.runner.poisoned_chunks.add(index)
        self.mark(self.plan.chunks[index].blocks)

    @precondition(lambda self: self.plan is not None)
    @rule()
    def commit(self) -> None:
        assert self.plan is not None
        plan, self.plan = self.plan, None
        for delta in self.scheduler.commit(plan, self.runner.run(plan)):
            self.take(delta)
        assert not any(watched.cancelled for watched in self.live)

    @precondition(lambda self: self.plan is not None and self.plan.chunks)
    @rule()
    def fail(self) -> None:
        assert self.plan is not None
        plan, self.plan = self.plan, None
        self.runner.failure = RuntimeError()
        with pytest.raises(RuntimeError):
            self.runner.run(plan)
        for chunk in plan.chunks:
            self.mark(chunk.blocks)
        deltas = self.scheduler.fail(plan, "broken")
        assert len(deltas) == len(plan.chunks)
        for delta in deltas:
            self.take(delta)

    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.plan is None:
                self.make_plan()
            self.commit()
            self.books_balance()

    @precondition(lambda self: self.watched)
    @rule(index=st.integers(0, 100))
    def cancel(self, index: int) -> None:
        watched = self.watched[index % len(self.watched)]
        delta = self.scheduler.cancel(watched.request.id)
        if watched.final is None:
            watched.cancelled = True
        if delta is not None:
            self.take(delta)
            assert watched.final is delta

    @invariant()
    def books_balance(self) -> None:
        if self.watched:
            self.scheduler.check()
            assert sum(watched.request.blocks != [] for watched in self.watched) == self.scheduler.running

    @invariant()
    def blocks_are_shared_by_equal_prefixes_only(self) -> None:
        first_owner: dict[int, tuple[str, list[int]]] = {}
        for watched in self.live:
            request = watched.request
            for index, block in enumerate(request.blocks):
                prefix = [*request.tokens(0, (index + 1) * self.pool.block_size)]
                assert first_owner.setdefault(block, (request.cache_salt, prefix)) == (request.cache_salt, prefix)

    @invariant()
    def those_that_run_are_older_than_those_that_wait(self) -> None:
        owning = [bool(watched.request.blocks) for watched in self.live]
        assert owning == sorted(owning, reverse=True)

    def mark(self, blocks: object) -> None:
        """Whoever holds these blocks may end with an error, and nobody else."""
        (watched,) = (watched for watched in self.live if watched.request.blocks is blocks)
        watched.may_fail = True

    def somebody_else_knew(self, request: Request, count: int) -> bool:
        """Whether another request of the same salt starts with the same `count` tokens."""
        prefix = list(request.tokens(0, count))
        others = (other.request for other in self.watched if other.request is not request)
        return count == 0 or any(
            other.cache_salt == request.cache_salt and list(other.tokens(0, count)) == prefix for other in others
        )

    def take(self, delta: Delta) -> None:
        watched = self.watched[delta.id]
        assert watched.final is None
        assert delta.cached_tokens == (watched.request.cached_tokens or 0)
        assert self.somebody_else_knew(watched.request, delta.cached_tokens)
        watched.emitted += delta.tokens
        tokens, reason = watched.expected
        assert watched.emitted == tokens[: len(watched.emitted)]
        assert watched.request.output == watched.emitted
        if delta.finish_reason is None:
            assert len(delta.tokens) == 1
            return
        watched.final = delta
        if delta.finish_reason == "abort":
            assert watched.cancelled
        elif delta.finish_reason == "error":
            assert watched.may_fail
            assert delta.error
        else:
            assert (watched.emitted, delta.finish_reason) == (tokens, reason)

    def teardown(self) -> None:
        """Every step brings the oldest request a token nearer to its end, so there is an end to the steps."""
        if not self.watched:
            return
        bound = 1 + sum(watched.request.known + watched.request.params.max_tokens for watched in self.live)
        for _ in range(bound):
            if not self.scheduler.has_work and self.plan is None:
                break
            self.step(1)
        assert not self.live
        assert self.pool.used == 0
        self.scheduler.check()


SchedulerMachine.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
test_scheduler_keeps_its_promises = SchedulerMachine.TestCase
