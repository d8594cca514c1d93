"""What the next step computes, and what a finished step means for each request.

Knows requests and blocks; it does not know the model, the clock, or the process it runs in.

There is no prefill phase and no decode phase: each step lets the computed tokens of requests catch up
with their known ones, under one token budget. Chunked prompts, prefix-cache hits and recomputation
after a preemption are all this one rule.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from model.contract import INVALID_TOKEN, Chunk, StepPlan, StepResult, TokenLogprobs
from service.engine.blocks import BlockPool
from service.engine.messages import Delta, FinishReason
from service.engine.request import Request


@dataclass(slots=True)
class Counters:
    """Totals since the start; the fields of `EngineStats` by these names say what they count."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0


class Scheduler:
    """Continuous batching: first come, first served, and the newest makes room for the oldest.

    Requests stand in arrival order in `running` followed by `waiting`: admission takes from the front of
    the one, preemption from the back of the other. The oldest request therefore gets every block it needs,
    and at least one token of every step, so that all requests end.
    """

    def __init__(self, pool: BlockPool, *, token_budget: int, max_running: int) -> None:
        """`token_budget` is the most tokens a step computes, `max_running` the most requests that own blocks.

        Raises ValueError if the budget does not give every running request a token.
        """
        if not 1 <= max_running <= token_budget:
            raise ValueError(f"token_budget ({token_budget}) must be at least max_running ({max_running}), and that 1")
        self.counters = Counters()
        self._pool = pool
        self._token_budget = token_budget
        self._max_running = max_running
        self._waiting: OrderedDict[int, Request] = OrderedDict()
        self._running: OrderedDict[int, Request] = OrderedDict()
        self._in_flight: dict[int, Request] = {}

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
        """Whether the next plan has chunks."""
        return bool(self._running or self._waiting)

    def add(self, request: Request) -> Delta | None:
        """Queue a request; a final delta comes back at once for one that could never run."""
        if not request.prompt:
            return _final(request, "error", "the prompt is empty")
        wanted = len(request.prompt) + request.params.max_tokens
        capacity = self._pool.num_blocks * self._pool.block_size
        if wanted > capacity:
            return _final(request, "error", f"prompt and max_tokens are {wanted} tokens, the KV cache holds {capacity}")
        self._waiting[request.id] = request
        return None

    def cancel(self, id: int) -> Delta | None:
        """End a request, and return its final delta.

        None if the id is not known, or if a step is running on the request's blocks: then the delta comes
        with the end of that step.
        """
        if id in self._in_flight:
            self._in_flight[id].cancelled = True
            return None
        request = self._running.get(id) or self._waiting.get(id)
        return self._end(request, "abort") if request else None

    def plan(self) -> StepPlan:
        """The next step. It must be committed, or failed, before the next plan."""
        budget = self._token_budget
        chunks = []
        for request in self._candidates():
            count = min(request.behind, budget)
            chunks.append(_chunk(request, count))
            self._in_flight[request.id] = request
            budget -= count
            if budget == 0:
                break
        return StepPlan(chunks)

    def commit(self, plan: StepPlan, result: StepResult) -> list[Delta]:
        """Take in what the step of `plan` drew; one delta for each request that has news."""
        drawn = zip(result.tokens, result.logprobs, strict=True)
        deltas = []
        for request, chunk in self._land(plan):
            self._advance(request, len(chunk.tokens))
            token, logprobs = next(drawn) if chunk.draw else (None, None)
            if request.cancelled:
                deltas.append(self._end(request, "abort"))
            elif token is not None:
                deltas.append(self._accept(request, token, logprobs))
        return deltas

    def fail(self, plan: StepPlan, message: str) -> list[Delta]:
        """End every request of a plan whose step did not come to an end."""
        return [
            self._end(request, "abort") if request.cancelled else self._fail(request, message)
            for request, _ in self._land(plan)
        ]

    def check(self) -> None:
        """Raise PoolError if a block is lost, owned twice or wrongly findable. O(pool), for tests."""
        self._pool.check([*self._running.values(), *self._waiting.values()])

    def _candidates(self) -> Iterator[Request]:
        """Whom to compute for, most urgent first, each with blocks for all its known tokens.

        A decoding request is one token behind and the budget covers all of those, so no prompt stalls them.
        A request is admitted only when the caller has budget left and asks for one more.
        """
        for request in list(self._running.values()):
            if request.behind == 1 and request.id in self._running and self._grow(request):
                yield request
        for request in self._running.values():
            if request.behind > 1:
                yield request
        while self._waiting and len(self._running) < self._max_running:
            request = next(iter(self._waiting.values()))
            if not self._admit(request):
                return
            yield request

    def _grow(self, request: Request) -> bool:
        """Find room for the newest token of a request; False if it had to make room itself."""
        while len(request.blocks) < self._pool.blocks_for(request.known):
            fresh = self._pool.allocate(1)
            if fresh is not None:
                request.blocks += fresh
            elif self._preempt_newest() is request:
                return False
        return True

    def _preempt_newest(self) -> Request:
        """Take its blocks from the newest running request. It keeps its output and is the next to be admitted."""
        _, request = self._running.popitem()
        self._pool.release(request)
        request.computed = 0
        self._waiting[request.id] = request
        self._waiting.move_to_end(request.id, last=False)
        self.counters.preemptions += 1
        return request

    def _admit(self, request: Request) -> bool:
        """Move a request from waiting to running, with blocks for all it knows; False if they are not there.

        A block for each running request stays in reserve: without it their growth would soon preempt the newcomer.
        """
        found = self._pool.match(request)
        missing = self._pool.blocks_for(request.known) - len(found)
        fresh = self._pool.allocate(missing, shared=found, reserve=len(self._running))
        if fresh is None:
            return False
        request.blocks = found + fresh
        request.published = len(found)
        request.computed = len(found) * self._pool.block_size
        if request.cached_tokens is None:
            request.cached_tokens = request.computed
            self.counters.prefix_queries += len(request.prompt)
            self.counters.prefix_hits += request.computed
        del self._waiting[request.id]
        self._running[request.id] = request
        return True

    def _land(self, plan: StepPlan) -> Iterator[tuple[Request, Chunk]]:
        """The requests of a plan beside their chunks; from now on no step is in flight."""
        landed, self._in_flight = self._in_flight, {}
        return zip(landed.values(), plan.chunks, strict=True)

    def _advance(self, request: Request, count: int) -> None:
        """Note that `count` more tokens are computed."""
        begin = max(request.counted, request.computed)
        request.computed += count
        request.counted = max(begin, min(request.computed, len(request.prompt)))
        self.counters.prompt_tokens += request.counted - begin

    def _accept(self, request: Request, token: int, logprobs: TokenLogprobs | None) -> Delta:
        """Append a drawn token, and end the request if it was the last."""
        if token == INVALID_TOKEN:
            return self._fail(request, "the model produced no finite logits")
        # Only here: finite logits are the evidence that what was computed for them is sound.
        self._pool.publish(request)
        request.output.append(token)
        self.counters.generated_tokens += 1
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
        self._running.pop(request.id, None)
        self._waiting.pop(request.id, None)


def _chunk(request: Request, count: int) -> Chunk:
    """The next `count` uncomputed tokens of a request. Only the slice of tokens is copied."""
    stop = request.computed + count
    return Chunk(
        tokens=request.tokens(request.computed, stop),
        start=request.computed,
        blocks=request.blocks,
        draw=request.draw if stop == request.known else None,
    )


def _finish_reason(request: Request, token: int) -> FinishReason | None:
    if token in request.params.stop_token_ids:
        return "stop"
    if len(request.output) >= request.params.max_tokens:
        return "length"
    return None


def _final(request: Request, reason: FinishReason, error: str | None = None) -> Delta:
    """The last delta of a request that ends without a token."""
    return Delta(
        id=request.id,
        tokens=[],
        logprobs=None,
        finish_reason=reason,
        cached_tokens=request.cached_tokens or 0,
        error=error,
    )
