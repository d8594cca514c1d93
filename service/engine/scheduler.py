"""What the next step computes, and what a finished step means for each request.

Knows requests and blocks; it does not know the model, the clock, or the process it runs in.

There is no prefill phase and no decode phase: each step lets the computed tokens of requests catch up
with their known ones, under one token budget. Chunked prompts, prefix-cache hits and recomputation
after a preemption are all this one rule.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from model.contract import INVALID_TOKEN, Chunk, StepPlan, StepResult, TokenLogprobs
from service.engine.blocks import BlockPool
from service.engine.callers import NO_LIMITS, CallerLimits, Callers
from service.engine.leaders import Leaders
from service.engine.messages import STEP_TOKENS, Delta, FinishReason, Refusal
from service.engine.request import Request

OLDEST_SHARE = 4
"""The oldest prompt is certain of this part of a step's budget for prompts: a quarter."""


TOO_LATE = Refusal("deadline_exceeded", "the request's time to wait was over before its turn came", 1.0)


@dataclass(slots=True)
class Counters:
    """Totals since the start; the fields of `EngineStats` by these names say what they count."""

    steps: int = 0
    step_tokens: list[int] = field(default_factory=lambda: [0] * (len(STEP_TOKENS) + 1))
    computed_tokens: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """A plan that has not landed yet, and for each of its chunks the request it belongs to."""

    plan: StepPlan
    requests: Sequence[Request]


class Scheduler:
    """Continuous batching in which no prompt holds up another for long, and the newest makes room for the oldest.

    Every step gives each decoding request its token. A share of what is left of the budget is the oldest prompt's; the
    rest goes to the prompts with the fewest tokens to compute. A short prompt therefore passes long ones, and a long
    one is never starved: once it is the oldest, its share is certain.

    The oldest prompt is also admitted first, and while there are no blocks for it nobody else is admitted. Preemption
    takes blocks from the newest. All requests therefore end.

    A plan is in flight until it lands: committed, or failed. The next one may be made before that, with the tokens
    promised by the draws in flight. A request that ends meanwhile (a stop token, a cancellation, a failure) gives its
    blocks back at once, although a step in flight still computes for it; what that step draws for it is dropped.
    This is safe because steps run in the order of their plans: whoever gets such a block writes it in a later step.
    Nor is such a block found by its content: chunks begin behind all that was published, and nothing is published for
    a request that has ended.
    """

    def __init__(
        self, pool: BlockPool, *, token_budget: int, max_running: int, caller_limits: CallerLimits = NO_LIMITS
    ) -> None:
        """`token_budget` is the most tokens a step computes, `max_running` the most requests that own blocks.

        Raises ValueError if the budget does not give every running request a token.
        """
        if not 1 <= max_running <= token_budget:
            raise ValueError(f"token_budget ({token_budget}) must be at least max_running ({max_running}), and that 1")
        self.counters = Counters()
        self._pool = pool
        self._token_budget = token_budget
        self._max_running = max_running
        self._callers = Callers(caller_limits, max_running)
        self._leaders = Leaders(pool.block_size)
        self._waiting: dict[int, Request] = {}
        self._running: dict[int, Request] = {}
        self._arrivals = count()
        self._rows = list(range(max_running))
        """The places among those that run that nobody has."""
        self._in_flight: deque[Step] = deque()
        self._draws: dict[int, int] = {}
        """For each request that draws in the newest plan: at which place among the plan's draws."""

    @property
    def waiting(self) -> int:
        """Requests that own no blocks yet, or no longer."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that own blocks."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._running or self._waiting)

    def add(self, request: Request) -> Delta | None:
        """Queue a request; a final delta comes back at once for one that could never run."""
        if not request.prompt:
            return _final(request, "error", "the prompt is empty")
        wanted = len(request.prompt) + request.params.max_tokens
        capacity = self._pool.num_blocks * self._pool.block_size
        if wanted > capacity:
            return _final(request, "error", f"prompt and max_tokens are {wanted} tokens, the KV cache holds {capacity}")
        if refusal := self._callers.refusal(request.caller, request.submitted):
            return _refused(request, refusal)
        self._callers.spend(request.caller, len(request.prompt), request.submitted)
        self._callers.wait(request.caller)
        request.arrival = next(self._arrivals)
        self._waiting[request.id] = request
        return None

    def cancel(self, id: int) -> Delta | None:
        """End a request, and return its final delta; None if the id is not known."""
        request = self._running.get(id) or self._waiting.get(id)
        return self._end(request, "abort") if request else None

    def expire(self, now: float) -> list[Delta]:
        """End the requests whose first step has not come in the time that they had for it."""
        expired = [request for request in self._waiting.values() if _expired(request, now)]
        for request in expired:
            self._drop(request)
        return [_refused(request, TOO_LATE) for request in expired]

    def plan(self, now: float) -> StepPlan | None:
        """The next step; None if there is nothing to compute, or nothing before the step in flight has landed.

        At most one step may be in flight: a chunk follows draws of the plan before its own, and of no other. `now` is
        noted for requests whose first it is.
        """
        if self._in_flight and self._must_land():
            return None
        chunks, requests = [], []
        draws: dict[int, int] = {}
        for request, tokens in self._shares():
            chunk = self._chunk(request, tokens)
            if request.planned is None:
                request.planned = now
            if chunk.draw is not None:
                draws[request.id] = len(draws)
            chunks.append(chunk)
            requests.append(request)
        if not chunks:
            return None
        self._draws = draws
        self._in_flight.append(Step(StepPlan(chunks), requests))
        return self._in_flight[-1].plan

    def commit(self, result: StepResult, now: float) -> list[Delta]:
        """Take in what the oldest step in flight drew by `now`; one delta for each request that has news."""
        step = self._in_flight.popleft()
        self._count_step(step.plan)
        drawn = zip(result.tokens, result.logprobs, strict=True)
        deltas = []
        for request, chunk in zip(step.requests, step.plan.chunks, strict=True):
            token, logprobs = next(drawn) if chunk.draw else (None, None)
            if request.ended:
                continue
            self._count(request, chunk)
            if token is not None:
                deltas.append(self._accept(request, chunk, token, logprobs, now))
        return deltas

    def fail(self, message: str) -> list[Delta]:
        """End every request of the oldest step in flight, which did not come to an end."""
        step = self._in_flight.popleft()
        self._count_step(step.plan)
        return [self._fail(request, message) for request in step.requests if not request.ended]

    def take_apart(self) -> list[StepPlan]:
        """Plan the only step in flight, which failed, once more as a step for each of its requests that has not ended.

        The new steps are in flight in this order. Each computes what its request's part in the failed one was to
        compute; the tokens that it waited for have been drawn since.
        """
        (step,) = self._in_flight
        self._in_flight.clear()
        self._count_step(step.plan)
        for request, chunk in zip(step.requests, step.plan.chunks, strict=True):
            if not request.ended:
                known = replace(chunk, tokens=request.tokens(chunk.start, _stop(chunk)), follows=None)
                self._in_flight.append(Step(StepPlan([known]), [request]))
        return [step.plan for step in self._in_flight]

    def check(self) -> None:
        """Raise PoolError if a block is lost, owned twice or wrongly findable. O(pool), for tests."""
        self._pool.check([*self._running.values(), *self._waiting.values()])

    def _must_land(self) -> bool:
        """Whether the step in flight must land before the next is planned: there is no room for all who grow.

        Nobody is preempted before the step has landed: it may end requests and make room, and it finds all others where
        they were.
        """
        return not self._pool.can_grow(self._running.values())

    def _shares(self) -> list[tuple[Request, int]]:
        """Whom to compute for and how many tokens of each, all with blocks for their tokens."""
        decoding = [
            request
            for request in list(self._running.values())
            if request.behind == 1 and request.id in self._running and self._grow(request)
        ]
        # One that has grown may have made room since.
        decoding = [request for request in decoding if request.id in self._running]
        return [(request, 1) for request in decoding] + self._prompt_shares(self._token_budget - len(decoding))

    def _prompt_shares(self, budget: int) -> list[tuple[Request, int]]:
        """How `budget` tokens are dealt out among the prompts; those that wait are admitted as far as it reaches."""
        prompts = [request for request in self._running.values() if request.behind > 1]
        prompts = sorted([*prompts, *self._waiting.values()], key=lambda request: (request.behind, request.arrival))
        oldest = next((request for request in sorted(prompts, key=_arrival) if not self._stays(request)), None)
        if oldest is None or not budget:
            return []
        shares: dict[Request, int] = {}
        # Without blocks for the oldest, nobody else may take any.
        admitting = self._runs(oldest)
        if admitting:
            shares[oldest] = min(oldest.behind, max(1, budget // OLDEST_SHARE))
            budget -= shares[oldest]
        for request in prompts:
            if not budget:
                break
            if request.id in self._waiting and (not admitting or self._stays(request)):
                continue
            if not self._runs(request):
                admitting = False
                continue
            more = min(request.behind - shares.get(request, 0), budget)
            if more:
                shares[request] = shares.get(request, 0) + more
                budget -= more
        return [*shares.items()]

    def _runs(self, request: Request) -> bool:
        """Whether a request owns blocks, now at the latest if there are any for it."""
        if request.id in self._running:
            return True
        return len(self._running) < self._max_running and self._admit(request)

    def _stays(self, request: Request) -> bool:
        """Whether a request waits on, even if there is room: its caller has enough, or another computes for it."""
        if request.id in self._running:
            return False
        if not self._callers.may_run(request.caller):
            return True
        return self._leaders.worth_waiting_for(request, len(self._pool.match(request)))

    def _grow(self, request: Request) -> bool:
        """Find room for the newest token of a request; False if it had to make room itself."""
        while not self._pool.grow(request):
            if self._preempt_newest() is request:
                return False
        return True

    def _preempt_newest(self) -> Request:
        """Take its blocks from the newest running request, which keeps its output and waits again."""
        request = max(self._running.values(), key=_arrival)
        self._leave(request)
        self._pool.release(request)
        request.computed = 0
        self._waiting[request.id] = request
        self._callers.wait(request.caller)
        self.counters.preemptions += 1
        return request

    def _admit(self, request: Request) -> bool:
        """Move a request from waiting to running, with blocks for all it knows; False if they are not there.

        A block for each running request stays in reserve: without it their growth would soon preempt the newcomer.
        """
        if not self._pool.admit(request, reserve=len(self._running)):
            return False
        if request.cached_tokens is None:
            request.cached_tokens = request.computed
            self.counters.prefix_queries += len(request.prompt)
            self.counters.prefix_hits += request.computed
        del self._waiting[request.id]
        self._running[request.id] = request
        request.row, request.fresh = self._rows.pop(), True
        self._callers.wait(request.caller, -1)
        self._callers.run(request.caller)
        self._leaders.add(request)
        return True

    def _chunk(self, request: Request, count: int) -> Chunk:
        """Plan the next `count` tokens of a request. Of what is known only this slice is copied."""
        start, stop = request.computed, request.computed + count
        # A promised token stands alone: its request had caught up with all before it, or would have drawn nothing.
        follows = self._draws[request.id] if stop > request.known else None
        chunk = Chunk(
            tokens=request.tokens(start, stop) if follows is None else [INVALID_TOKEN],
            start=start,
            blocks=request.blocks,
            draw=request.draw() if stop == request.length else None,
            follows=follows,
        )
        request.computed = stop
        if chunk.draw is not None:
            request.promised += 1
            request.fresh = False
        return chunk

    def _count_step(self, plan: StepPlan) -> None:
        tokens = sum(len(chunk.tokens) for chunk in plan.chunks)
        self.counters.steps += 1
        self.counters.computed_tokens += tokens
        self.counters.step_tokens[bisect_left(STEP_TOKENS, tokens)] += 1

    def _count(self, request: Request, chunk: Chunk) -> None:
        """Note for the statistics that the tokens of a chunk are computed, and that those before it were found."""
        stop = min(_stop(chunk), len(request.prompt))
        if stop > request.counted:
            self.counters.prompt_tokens += stop - request.counted
            self.counters.cached_prompt_tokens += max(min(chunk.start, stop) - request.counted, 0)
            request.counted = stop

    def _accept(self, request: Request, chunk: Chunk, token: int, logprobs: TokenLogprobs | None, now: float) -> Delta:
        """Append a drawn token, and end the request if it was the last."""
        if token == INVALID_TOKEN:
            return self._fail(request, "the model produced no finite logits")
        # Only here, and only this far: finite logits are the evidence that what was computed for them is sound.
        self._pool.publish(request, _stop(chunk))
        self._leaders.remove(request)
        request.promised -= 1
        request.output.append(token)
        request.last_drawn = now
        if request.first_drawn is None:
            request.first_drawn = now
        self.counters.generated_tokens += 1
        self._callers.spend(request.caller, 1, now)
        reason = _finish_reason(request, token)
        if reason is not None:
            self._drop(request)
            self._pool.release(request)
        return Delta(
            id=request.id,
            tokens=[token],
            logprobs=None if logprobs is None else [logprobs],
            finish_reason=reason,
            cached_tokens=request.cached_tokens or 0,
            times=request.times,
        )

    def _end(self, request: Request, reason: FinishReason) -> Delta:
        self._drop(request)
        self._pool.release(request)
        return _final(request, reason)

    def _fail(self, request: Request, message: str) -> Delta:
        self._drop(request)
        self._pool.discard(request)
        return _final(request, "error", message)

    def _drop(self, request: Request) -> None:
        request.ended = True
        if request.id in self._running:
            self._leave(request)
        elif self._waiting.pop(request.id, None):
            self._callers.wait(request.caller, -1)

    def _leave(self, request: Request) -> None:
        """Take a request from those that run; its blocks are for the caller to release."""
        del self._running[request.id]
        self._rows.append(request.row)
        self._callers.run(request.caller, -1)
        self._leaders.remove(request)


def _arrival(request: Request) -> int:
    return request.arrival


def _stop(chunk: Chunk) -> int:
    """How many tokens of the request are computed once the chunk is."""
    return chunk.start + len(chunk.tokens)


def _finish_reason(request: Request, token: int) -> FinishReason | None:
    if token in request.params.stop_token_ids:
        return "stop"
    if len(request.output) >= request.params.max_tokens:
        return "length"
    return None


def _expired(request: Request, now: float) -> bool:
    """Whether a request that waits has not had its first step in time; one that was preempted has had it."""
    return request.patience is not None and request.planned is None and now - request.submitted > request.patience


def _refused(request: Request, refusal: Refusal) -> Delta:
    return Delta(id=request.id, tokens=[], logprobs=None, finish_reason="refused", refusal=refusal, times=request.times)


def _final(request: Request, reason: FinishReason, error: str | None = None) -> Delta:
    """The last delta of a request that ends without a token."""
    return Delta(
        id=request.id,
        tokens=[],
        logprobs=None,
        finish_reason=reason,
        cached_tokens=request.cached_tokens or 0,
        error=error,
        times=request.times,
    )
