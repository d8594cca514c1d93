"""Any order of what may happen to a scheduler keeps its promises."""

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.contract import Chunk, StepPlan, Wanted
from model.sampling_params import SamplingParams
from service.engine.blocks import BlockPool
from service.engine.drafts import DraftPolicy, Guess, leave_open
from service.engine.messages import Delta, deltas_of
from service.engine.request import Request
from service.engine.scheduler import Scheduler
from tests.service.engine.fakes import VOCAB_SIZE, FakeRunner, half_wrong, output_alone

NOW = 0.0
"""For steps whose times nobody asks for."""


@dataclass
class Watched:
    """A request of the machine below, with what it ought to get and what it has got."""

    request: Request
    expected: tuple[list[int], str]
    emitted: list[int] = field(default_factory=list)
    scored: list[tuple[int, int]] = field(default_factory=list)
    """Position and token of each prompt token whose log-probability was told."""
    final: Delta | None = None
    cancelled: bool = False
    may_fail: bool = False


def guessed(request: Request, most: int) -> list[int]:
    """Drafts of which about half are right, and some are rejected at every place."""
    tokens = [*request.tokens(0, request.known)]
    return half_wrong(tokens, sum(tokens) % (most + 1))


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of requests, steps, cancellations, NaNs and failing steps keeps the promises."""

    lookahead = 0

    def __init__(self) -> None:
        super().__init__()
        self.watched: list[Watched] = []

    @initialize(
        num_blocks=st.integers(2, 10) | st.integers(2, 64),
        block_size=st.integers(1, 16),
        max_running=st.integers(1, 6),
        spare=st.integers(0, 40),
        draft_tokens=st.sampled_from([0, 0, 1, 4]),
        draft_running=st.integers(1, 6),
        guess=st.sampled_from([guessed, leave_open]),
    )
    def begin(
        self,
        num_blocks: int,
        block_size: int,
        max_running: int,
        spare: int,
        draft_tokens: int,
        draft_running: int,
        guess: Guess,
    ) -> None:
        self.budget, self.max_running = max_running + spare, max_running
        self.capacity = num_blocks * block_size
        self.pool = BlockPool(num_blocks, block_size)
        self.runner = FakeRunner(num_blocks, block_size, self.lookahead)
        self.draft_tokens, self.draft_running = draft_tokens, draft_running
        self.scheduler = Scheduler(
            self.pool,
            token_budget=self.budget,
            max_running=max_running,
            drafts=DraftPolicy(guess=guess, tokens=draft_tokens, running=draft_running),
        )

    @property
    def live(self) -> list[Watched]:
        return [watched for watched in self.watched if watched.final is None]

    @property
    def in_flight(self) -> int:
        return len(self.runner.in_flight)

    @rule(
        document=st.integers(0, 1),
        share=st.integers(1, 50),
        tail=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=1),
        salt=st.sampled_from(["", "", "salt"]),
        max_tokens=st.integers(1, 40),
        stops=st.sets(st.integers(0, VOCAB_SIZE - 1), max_size=1),
        penalty=st.sampled_from([0.0, 0.0, 0.0, 1.0]),
        wanted=st.sampled_from([Wanted(), Wanted(), Wanted(prompt_logprobs=1)]),
    )
    def add(
        self,
        document: int,
        share: int,
        tail: list[int],
        salt: str,
        max_tokens: int,
        stops: set[int],
        penalty: float,
        wanted: Wanted,
    ) -> None:
        """`share` percent of the cache as a prompt that starts like the other prompts of its document."""
        length = max(1, self.capacity * share // 100)
        prompt = [(position * (position + document)) % VOCAB_SIZE for position in range(length)] + tail
        max_tokens = min(max_tokens, max(1, self.capacity - length))
        params = SamplingParams(max_tokens=max_tokens, stop_token_ids=tuple(stops), presence_penalty=penalty)
        request = Request(len(self.watched), prompt, params, salt, wanted=wanted)
        watched = Watched(request, output_alone(prompt, params))
        self.watched.append(watched)
        delta = self.scheduler.add(watched.request)
        if len(prompt) + max_tokens > self.capacity:
            assert delta is not None
            watched.may_fail = True
            self.take(delta)
        else:
            assert delta is None

    @precondition(lambda self: self.in_flight <= self.lookahead)
    @rule(mishap=st.sampled_from(["none", "none", "poison", "failure", "refusal"]), index=st.integers(0, 100))
    def start(self, mishap: str, index: int) -> None:
        plan = self.plan()
        if plan is None:
            return
        if mishap == "poison":
            # Rather a chunk without a draw: what is wrong with it shows only later.
            undrawn = [index for index, chunk in enumerate(plan.chunks) if not chunk.draws]
            index = undrawn[0] if undrawn else index % len(plan.chunks)
            self.runner.poisoned_chunks.add(index)
            self.mark(plan.chunks[index])
        elif mishap != "none":
            setattr(self.runner, mishap, RuntimeError())
        if mishap == "failure":
            for chunk in plan.chunks:
                self.mark(chunk)
        if mishap == "refusal":
            with pytest.raises(RuntimeError):
                self.runner.start(plan)
            while self.in_flight:
                self.land()
            for alone in self.scheduler.take_apart():
                self.runner.start(alone)
                self.land()
        else:
            self.runner.start(plan)

    def plan(self) -> StepPlan | None:
        live = self.live
        due = [watched.request for watched in live if watched.request.blocks and self.is_due(watched.request)]
        waits = bool(live) and self.waits(live[0].request)
        plan = self.scheduler.plan(NOW)
        assert self.scheduler.running <= self.max_running
        if plan is None:
            assert self.in_flight or not live
            return None
        assert 1 <= sum(len(chunk.tokens) for chunk in plan.chunks) <= self.budget
        drawing = {id(chunk.blocks) for chunk in plan.chunks if chunk.draws}
        assert all(id(request.blocks) in drawing for request in due if request.blocks)
        oldest = live[0].request
        # Without blocks it waits for some, or for another that computes what it needs.
        if oldest.blocks and oldest.behind and not waits:
            assert any(chunk.blocks is oldest.blocks for chunk in plan.chunks)
        return plan

    def waits(self, request: Request) -> bool:
        """Whether a request, which may get drafts, waits for its own draw."""
        drafting = self.draft_tokens and self.scheduler.running <= self.draft_running
        return bool(request.promised and (request.drafts or (drafting and not request.params.reads_output)))

    def is_due(self, request: Request) -> bool:
        """Whether the next step owes a request a token."""
        return request.behind == 1 and not self.waits(request)

    @precondition(lambda self: self.in_flight)
    @rule()
    def land(self) -> None:
        try:
            result = self.runner.in_flight[0].result()
        except RuntimeError:
            self.fail()
            return
        for delta in deltas_of(self.scheduler.commit(result, NOW)):
            self.take(delta)

    def fail(self) -> None:
        for delta in self.scheduler.fail("broken"):
            assert delta.finish_reason == "error"
            self.take(delta)

    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        for _ in range(count):
            while self.in_flight <= self.lookahead and (plan := self.plan()):
                self.runner.start(plan)
                self.books_balance()
            if self.in_flight:
                self.land()
                self.books_balance()

    @precondition(lambda self: self.watched)
    @rule(index=st.integers(0, 100))
    def cancel(self, index: int) -> None:
        watched = self.watched[index % len(self.watched)]
        delta = self.scheduler.cancel(watched.request.id)
        assert (delta is None) == (watched.final is not None)
        if delta is not None:
            assert delta.finish_reason == "abort"
            watched.cancelled = True
            self.take(delta)

    @invariant()
    def books_balance(self) -> None:
        if self.watched:
            self.scheduler.check()
            assert sum(bool(watched.request.blocks) for watched in self.watched) == self.scheduler.running

    @invariant()
    def nobody_keeps_blocks_of_wrong_drafts(self) -> None:
        for watched in self.live:
            if not watched.request.drafts:
                assert len(watched.request.blocks) <= self.pool.blocks_for(watched.request.length)

    @invariant()
    def statistics_count_every_token_once(self) -> None:
        requests = [watched.request for watched in self.watched]
        if requests:
            assert self.scheduler.counters.prompt_tokens == sum(request.counted for request in requests)
            assert self.scheduler.counters.generated_tokens == sum(len(request.output) for request in requests)
        assert all(request.counted == len(request.prompt) for request in requests if request.output)

    @invariant()
    def blocks_are_shared_by_equal_prefixes_only(self) -> None:
        first_owner: dict[int, tuple[str, list[int]]] = {}
        for watched in self.live:
            request = watched.request
            for index, block in enumerate(request.blocks):
                prefix = [*request.tokens(0, (index + 1) * self.pool.block_size)]
                assert first_owner.setdefault(block, (request.cache_salt, prefix)) == (request.cache_salt, prefix)

    def mark(self, chunk: Chunk) -> None:
        """The request of this chunk may end with an error, and no other."""
        (watched,) = (watched for watched in self.live if watched.request.blocks is chunk.blocks)
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
        watched.scored += [(int(entry.chosen), entry.top_tokens[0]) for entry in delta.scores]
        asked = watched.request.wanted.prompt_logprobs is not None
        every = [*enumerate(watched.request.prompt)][1:] if asked else []
        assert watched.scored == every[: len(watched.scored)]
        assert watched.scored == every or not watched.emitted
        tokens, reason = watched.expected
        assert watched.emitted == tokens[: len(watched.emitted)]
        assert watched.request.output == watched.emitted
        if delta.finish_reason is None:
            assert len(delta.tokens) <= 1 + self.draft_tokens
            assert delta.tokens or delta.scores
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
        for _ in range(bound + self.in_flight):
            self.step(1)
        assert not self.live
        assert not self.in_flight
        assert self.pool.used == 0
        self.scheduler.check()


class LookaheadMachine(SchedulerMachine):
    """The same promises where each step is planned and started while the one before it is in flight."""

    lookahead = 1


SchedulerMachine.TestCase.settings = LookaheadMachine.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
test_scheduler_keeps_its_promises = SchedulerMachine.TestCase
test_scheduler_keeps_its_promises_looking_ahead = LookaheadMachine.TestCase
