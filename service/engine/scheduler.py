"""The scheduler: chooses the tokens of the next step, and turns a finished step into news for each request.

It knows requests and steps; it does not know the model, the clock, or the process it runs in.

There is no prefill phase and no decode phase: each step lets the computed tokens of requests catch up with their known
ones, under one token budget. Chunked prompts, prefix-cache hits and recomputation after a preemption all follow this
one rule.
"""

from collections import deque
from concurrent.futures import FIRST_COMPLETED
from itertools import count

from model.contract import StepPlan, StepResult
from service.engine.blocks import BlockPool
from service.engine.budget import Budget
from service.engine.callers import NO_LIMITS, CallerLimits
from service.engine.drafting import Drafting
from service.engine.drafts import NO_DRAFTS, DraftPolicy
from service.engine.grammar_source import GrammarError
from service.engine.grammars import COMPILE_SECONDS
from service.engine.guides import wait_for_masks
from service.engine.inspection_turns import InspectionTurns
from service.engine.landing import Landing
from service.engine.messages import BeamSearch, Counters, Delta, News, Refusal
from service.engine.news import last_delta, refused_delta, rejected_delta
from service.engine.request import Request
from service.engine.roster import Roster
from service.engine.searches import Searches
from service.engine.steps import Step, next_step

MASK_SECONDS = 0.002
"""Time that a step waits for the masks of its draws; a request whose mask takes longer misses the step.

A step that follows one in flight waits while it is computed, which takes the device longer unless the model is small.
"""
IDLE_SECONDS = 0.01
"""Time that the engine waits for grammars alone before it looks for messages again."""
TOO_LATE = Refusal("deadline_exceeded", "the request's time to wait was over before its turn came", 1.0)


class Scheduler:
    """Continuous batching: the roster has the requests, the budget chooses the next step's, the landing ends them.

    A plan is in flight until it lands: it is committed, or it fails. The next plan may be made before that, with the
    tokens promised by the draws in flight. A request that ends meanwhile (a stop token, a cancellation, a failure)
    gives its blocks back at once, although a step in flight still computes for it; the token that this step draws for
    it is dropped.

    Giving blocks back early is safe because steps run in the order of their plans: a block's next owner writes it in a
    later step. Nor can such a block be found by wrong content: chunks begin behind all published blocks, and nothing is
    published for a request that has ended.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        token_budget: int,
        max_running: int,
        caller_limits: CallerLimits = NO_LIMITS,
        drafts: DraftPolicy = NO_DRAFTS,
    ) -> None:
        """`token_budget` is the most tokens a step computes, `max_running` the most requests that own blocks.

        `drafts` says what decoding requests get beside their next token.

        Raises ValueError if the budget does not give every running request a token.
        """
        if not 1 <= max_running <= token_budget:
            raise ValueError(f"token_budget ({token_budget}) must be at least max_running ({max_running}), and that 1")
        self.counters = Counters()
        self._pool = pool
        self._roster = Roster(pool, self.counters, max_running, caller_limits)
        self._searches = Searches(self._roster)
        drafting = Drafting(self._roster, self.counters, drafts)
        self._inspection_turns = InspectionTurns(self._roster)
        self._budget = Budget(self._roster, drafting, self._inspection_turns, token_budget)
        self._landing = Landing(self._roster, self._searches, drafting, self.counters)
        self._arrivals = count()
        self._in_flight: deque[Step] = deque()

    @property
    def waiting(self) -> int:
        """Number of requests that own no blocks: not yet, or no longer after a preemption."""
        return len(self._roster.waiting)

    @property
    def running(self) -> int:
        """Number of requests that own blocks."""
        return len(self._roster.running)

    @property
    def in_flight(self) -> int:
        """Number of plans in flight, one that could not be started included."""
        return len(self._in_flight)

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._roster.running or self._roster.waiting)

    def add(self, request: Request, search: BeamSearch | None = None) -> Delta | None:
        """Queue a request; returns a final delta at once if it could never run or its caller is over a limit."""
        if not request.prompt:
            return last_delta(request, "error", "the prompt is empty")
        wanted = len(request.prompt) + request.params.max_tokens
        capacity = self._pool.num_blocks * self._pool.block_size
        if wanted > capacity:
            problem = f"prompt and max_tokens are {wanted} tokens, the KV cache holds {capacity}"
            return last_delta(request, "error", problem)
        callers = self._roster.callers
        if refusal := callers.refusal(request.caller, request.submitted):
            return refused_delta(request, refusal)
        callers.spend(request.caller, len(request.prompt), request.submitted)
        request.arrival = next(self._arrivals)
        self._roster.wait(request)
        if search is not None:
            self._searches.begin(request, search)
        return None

    def cancel(self, id: int) -> Delta | None:
        """End a request and return its final delta; None if the id is not known."""
        roster = self._roster
        request = self._searches.likeliest(id) or roster.running.get(id) or roster.waiting.get(id)
        if request is None:
            return None
        self._searches.end(request)
        return last_delta(request, "abort")

    def expire(self, now: float) -> list[Delta]:
        """End the waiting requests whose patience is over before their first step; `now` is in seconds."""
        expired = [request for request in self._roster.waiting.values() if request.expired(now)]
        for request in expired:
            self._searches.end(request)
        return [refused_delta(request, TOO_LATE) for request in expired]

    def reject(self, now: float) -> list[Delta]:
        """End the requests whose grammar cannot be followed, or was not compiled in time; `now` is in seconds."""
        guided = [request for request in self._roster if request.guide is not None]
        failures = [(request, failure) for request in guided if (failure := _grammar_failure(request, now))]
        for request, _ in failures:
            self._searches.end(request)
        return [rejected_delta(request, failure) for request, failure in failures]

    def await_grammars(self) -> None:
        """Wait a moment for the threads that work on grammars, because without them no step can be planned."""
        guides = [request.guide for request in self._roster if request.guide is not None]
        wait_for_masks(guides, IDLE_SECONDS, FIRST_COMPLETED)

    def plan(self, now: float) -> StepPlan | None:
        """The next step; None if there is nothing to compute, or nothing before the step in flight has landed.

        At most one step may be in flight: a chunk follows draws of the plan before its own, and of no other. `now`, in
        seconds, is noted for requests that are planned for the first time.
        """
        before = self._in_flight[-1] if self._in_flight else None
        if before is None:
            running = self._roster.running.values()
            wait_for_masks([request.guide for request in running if request.guide is not None], MASK_SECONDS)
        # Nobody is preempted before the step in flight has landed: it may end requests and so make room, and preemption
        # must find every other request as it was.
        elif not self._roster.can_grow:
            return None
        plain, shares = self._budget.shares(before)
        if not plain and not shares:
            return None
        for request, _ in shares:
            if request.queue is None:
                request.begin(now)
        self._in_flight.append(next_step(plain, shares, before))
        return self._in_flight[-1].plan

    @property
    def awaits_masks(self) -> bool:
        """Whether the newest step in flight awaits masks."""
        return bool(self._in_flight) and self._in_flight[-1].plan.awaits_masks

    def give_masks(self) -> None:
        """Give the newest step in flight the masks that its draws await; the step before must have landed.

        A request whose mask takes too long draws again in a later step.
        """
        late = self._in_flight[-1].late
        wait_for_masks([request.guide for request, _, _ in late if request.guide is not None], MASK_SECONDS)
        for request, chunk, draw in late:
            draw.allowed = None
            if request.ended or request.void or request.guide is None:
                continue
            if request.guide.ready:
                draw.allowed = request.guide.mask
            else:
                request.take_back(chunk.start)

    def commit(self, result: StepResult, now: float, seconds: float = 0.0) -> list[News]:
        """Take in the tokens drawn by the oldest step in flight; returns news of each request that drew.

        `now` is in seconds, and the step took so many `seconds`.
        """
        step = self._landed()
        self._inspection_turns.land(step, seconds)
        return self._landing.land(step, result, now)

    def fail(self, message: str) -> list[Delta]:
        """End every request of the oldest step in flight, which failed; `message` is its error.

        Requests whose chunks are void end too.
        """
        return [self._landing.fail(request, message) for request in self._landed().requests if not request.ended]

    def take_apart(self) -> list[StepPlan]:
        """Plan the only step in flight, which failed, again as one step for each of its requests that has not ended.

        The new steps are in flight in the order returned. Each computes the same tokens as its request's chunk in the
        failed step; promised tokens that the chunk waited for are known by now.
        """
        self.give_masks()
        self._in_flight.extend(self._landed().apart())
        return [step.plan for step in self._in_flight]

    def check(self) -> None:
        """Raise PoolError if a block is lost, owned twice or wrongly findable. Costs O(pool), for tests."""
        self._pool.check(self._roster)

    def _landed(self) -> Step:
        """Take the oldest step from those in flight, and count it."""
        step = self._in_flight.popleft()
        self.counters.add_step(step.plan.tokens)
        return step


def _grammar_failure(request: Request, now: float) -> Exception | None:
    """The reason why a request's grammar ends it."""
    if request.guide is None:
        return None
    if request.guide.failure is not None:
        return request.guide.failure
    late = request.awaits_mask and request.queue is None and now - request.submitted > COMPILE_SECONDS
    return GrammarError(f"was not compiled within {COMPILE_SECONDS:g} seconds") if late else None
