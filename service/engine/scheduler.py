"""The scheduler: chooses the tokens of the next step, and turns a finished step into news for each request.

It knows requests and blocks; it does not know the model, the clock, or the process it runs in.

There is no prefill phase and no decode phase: each step lets the computed tokens of requests catch up with their known
ones, under one token budget. Chunked prompts, prefix-cache hits and recomputation after a preemption all follow this
one rule.
"""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED
from dataclasses import dataclass, replace
from itertools import chain, count
from math import isnan

from model.contract import INVALID_TOKEN, NOTHING, Chunk, ChunkResult, StepPlan, StepResult
from service.engine.beams import Beams, Candidate
from service.engine.blocks import BlockPool
from service.engine.callers import NO_LIMITS, CallerLimits, Callers
from service.engine.decoding import drawn_news, next_tokens
from service.engine.drafting import Drafting, agreement
from service.engine.drafts import Guess, look_up
from service.engine.grammar_source import GrammarError
from service.engine.grammars import COMPILE_SECONDS, Guide, wait_for_masks
from service.engine.leaders import Leaders
from service.engine.messages import STEP_TOKENS, BeamSearch, Counters, Delta, FinishReason, News, Refusal
from service.engine.news import last_delta, refused_delta, rejected_delta, search_delta, step_delta
from service.engine.request import Request
from service.engine.wishes import wishes

OLDEST_SHARE = 4
"""The oldest prompt is certain of one part in this many of a step's budget for prompts: a quarter."""
MASK_SECONDS = 0.002
"""Time that a step waits for the masks of its draws; a request whose mask takes longer misses the step."""
IDLE_SECONDS = 0.01
"""Time that the engine waits for grammars alone before it looks for messages again."""
NO_EXTRAS = ChunkResult()
NOT_FINITE = "the model produced no finite logits"
NOTHING_LEFT = Refusal(
    "nothing_to_draw", "The request's restrictions (such as allowed_token_ids and bad_words) left no token to draw", 0.0
)
TOO_LATE = Refusal("deadline_exceeded", "the request's time to wait was over before its turn came", 1.0)


@dataclass(frozen=True, slots=True)
class Step:
    """A plan that has not landed yet, with its requests: those that decode plainly, and that of each other chunk."""

    plan: StepPlan
    plain: Sequence[Request]
    others: Sequence[Request]

    @property
    def requests(self) -> Sequence[Request]:
        """All requests, in the order of the plan's chunks."""
        return [*self.plain, *self.others]


class Scheduler:
    """Continuous batching in which no prompt holds up another for long, and the newest makes room for the oldest.

    Every step gives each decoding request its token. A share of the remaining budget is the oldest prompt's; the rest
    goes to the prompts with the fewest tokens to compute. A short prompt therefore passes long ones, and a long one is
    never starved: once it is the oldest, its share is certain.

    The oldest prompt is also admitted first, and while there are no blocks for it nobody else is admitted. Preemption
    takes blocks from the newest. All requests therefore end.

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
        draft_tokens: int = 0,
        draft_running: int = 1,
        guess: Guess = look_up,
    ) -> None:
        """`token_budget` is the most tokens a step computes, `max_running` the most requests that own blocks.

        A decoding request gets up to `draft_tokens` drafts in a step, which `guess` makes, while no more than
        `draft_running` requests own blocks.

        Raises ValueError if the budget does not give every running request a token.
        """
        if not 1 <= max_running <= token_budget:
            raise ValueError(f"token_budget ({token_budget}) must be at least max_running ({max_running}), and that 1")
        self.counters = Counters()
        self._pool = pool
        self._token_budget = token_budget
        self._max_running = max_running
        self._drafting = Drafting(pool, self.counters, draft_tokens, draft_running, guess)
        self._callers = Callers(caller_limits, max_running)
        self._leaders = Leaders(pool.block_size)
        self._waiting: dict[int, Request] = {}
        self._running: dict[int, Request] = {}
        self._arrivals = count()
        self._rows = list(range(max_running))
        """Rows of the runner's sampling state that no running request has."""
        self._in_flight: deque[Step] = deque()
        self._beams: dict[int, Beams] = {}
        """The searches that have not ended, by the ids of their clients' requests."""
        self._beam_ids = count(-1, -1)
        """Ids of beams, which no client's request has."""
        self._draws: dict[int, int] = {}
        """For each request that draws in the newest plan, the index of its draw in that plan."""

    @property
    def waiting(self) -> int:
        """Number of requests that own no blocks: not yet, or no longer after a preemption."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of requests that own blocks."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._running or self._waiting)

    def add(self, request: Request, search: BeamSearch | None = None) -> Delta | None:
        """Queue a request; returns a final delta at once if it could never run or its caller is over a limit."""
        if not request.prompt:
            return last_delta(request, "error", "the prompt is empty")
        wanted = len(request.prompt) + request.params.max_tokens
        capacity = self._pool.num_blocks * self._pool.block_size
        if wanted > capacity:
            problem = f"prompt and max_tokens are {wanted} tokens, the KV cache holds {capacity}"
            return last_delta(request, "error", problem)
        if refusal := self._callers.refusal(request.caller, request.submitted):
            return refused_delta(request, refusal)
        self._callers.spend(request.caller, len(request.prompt), request.submitted)
        self._callers.wait(request.caller)
        request.arrival = next(self._arrivals)
        self._waiting[request.id] = request
        if search is not None:
            request.search = request.id
            self._beams[request.id] = Beams(request.id, search)
            self._beams[request.id].begin(request)
        return None

    def cancel(self, id: int) -> Delta | None:
        """End a request and return its final delta; None if the id is not known."""
        request = self._running.get(id) or self._waiting.get(id)
        if id in self._beams:
            request = self._beams[id].requests[0]
        return self._end(request, "abort") if request else None

    def expire(self, now: float) -> list[Delta]:
        """End the waiting requests whose patience is over before their first step; `now` is in seconds."""
        expired = [request for request in self._waiting.values() if _expired(request, now)]
        for request in expired:
            self._drop(request)
        return [refused_delta(request, TOO_LATE) for request in expired]

    def reject(self, now: float) -> list[Delta]:
        """End the requests whose grammar cannot be followed, or was not compiled in time; `now` is in seconds."""
        guided = [r for r in chain(self._waiting.values(), self._running.values()) if r.guide is not None]
        failures = [(request, failure) for request in guided if (failure := _grammar_failure(request, now))]
        for request, _ in failures:
            self._drop(request)
            self._pool.release(request)
        return [rejected_delta(request, failure) for request, failure in failures]

    def await_grammars(self) -> None:
        """Wait a moment for the threads that work on grammars, because without them no step can be planned."""
        guided = chain(self._waiting.values(), self._running.values())
        wait_for_masks([r.guide for r in guided if r.guide is not None], IDLE_SECONDS, FIRST_COMPLETED)

    def plan(self, now: float) -> StepPlan | None:
        """The next step; None if there is nothing to compute, or nothing before the step in flight has landed.

        At most one step may be in flight: a chunk follows draws of the plan before its own, and of no other. `now`, in
        seconds, is noted for requests that are planned for the first time.
        """
        if self._in_flight and self._must_land():
            return None
        wait_for_masks([r.guide for r in self._running.values() if r.guide is not None], MASK_SECONDS)
        plain, shares = self._shares()
        decoding = next_tokens(plain, self._draws)
        draws = {request.id: index for index, request in enumerate(plain)}
        drawn = len(plain)
        chunks, others = [], []
        for request, tokens in shares:
            chunk = self._chunk(request, tokens)
            if request.queue is None:
                request.begin(now)
            if chunk.draws:
                draws[request.id] = drawn
            drawn += len(chunk.draws)
            chunks.append(chunk)
            others.append(request)
        if not chunks and not plain:
            return None
        self._draws = draws
        self._in_flight.append(Step(StepPlan(chunks, decoding), plain, others))
        return self._in_flight[-1].plan

    def commit(self, result: StepResult, now: float) -> list[News]:
        """Take in the tokens drawn by the oldest step in flight; returns news of each request that drew.

        `now` is in seconds.
        """
        step = self._in_flight.popleft()
        self._count_step(step.plan)
        news = self._accept_plainly(step, result.tokens, now)
        for request, chunk, outcome in zip(step.others, step.plan.others, result.others, strict=True):
            if request.ended:
                continue
            if request.counted < len(request.prompt):
                self._count(request, chunk)
            if (outcome.scores or outcome.distributions) and _unsound(outcome):
                news.append(self._fail(request, NOT_FINITE))
                continue
            if request.guide is not None and chunk.draws and _breaks_off(request.guide, request, outcome):
                self._retake(request, chunk)
                continue
            if request.search is not None and chunk.draws:
                news += self._accept_beam(request, self._beams[request.search], chunk, outcome, now)
            elif chunk.draws:
                news.append(self._accept(request, chunk, outcome, now))
            elif not request.params.max_tokens and _stop(chunk) == request.length:
                news.append(self._complete(request, outcome, now))
            elif chunk.scores or chunk.pooled or chunk.trace:
                news.append(step_delta(request, outcome))
            if request.wishes:
                request.collected = max(request.collected, _stop(chunk))
        searches = {request.search: None for request in step.others if not request.ended}
        for search in searches:
            if search is not None:
                news += self._advance(self._beams[search])
        return news

    def fail(self, message: str) -> list[Delta]:
        """End every request of the oldest step in flight, which failed; `message` is its error."""
        step = self._in_flight.popleft()
        self._count_step(step.plan)
        return [self._fail(request, message) for request in step.requests if not request.ended]

    def take_apart(self) -> list[StepPlan]:
        """Plan the only step in flight, which failed, again as one step for each of its requests that has not ended.

        The new steps are in flight in the order returned. Each computes the same tokens as its request's chunk in the
        failed step; promised tokens that the chunk waited for are known by now.
        """
        (step,) = self._in_flight
        self._in_flight.clear()
        self._count_step(step.plan)
        for request, chunk in zip(step.requests, step.plan.chunks, strict=True):
            if not request.ended:
                tokens = [*request.tokens(chunk.start, _stop(chunk)), *request.drafts]
                self._in_flight.append(Step(StepPlan([replace(chunk, tokens=tokens, follows=None)]), [], [request]))
        return [step.plan for step in self._in_flight]

    def check(self) -> None:
        """Raise PoolError if a block is lost, owned twice or wrongly findable. Costs O(pool), for tests."""
        self._pool.check([*self._running.values(), *self._waiting.values()])

    def _must_land(self) -> bool:
        """Whether the step in flight must land before the next is planned, because there are not enough blocks to grow.

        Nobody is preempted before that step has landed: it may end requests and so make room, and preemption must find
        every other request as it was.
        """
        # A request grows by one token from plan to plan, and so by one block at most.
        if len(self._running) <= self._pool.available:
            return False
        return not self._pool.can_grow(self._running.values())

    def _shares(self) -> tuple[list[Request], list[tuple[Request, int]]]:
        """The requests of the next step: those that decode plainly, and the others, each with its number of tokens.

        All own the blocks for them.
        """
        self._grow_full()
        drafting = self._drafting.active(len(self._running))
        plain, decoding, prompts = [], [], []
        for request in self._running.values():
            if request.decodes_plainly and not drafting:
                if request.computed < request.longest:
                    plain.append(request)
            elif request.behind > 1:
                prompts.append(request)
            # A mask may have become ready since blocks were dealt out.
            elif request.behind == 1 and not self._is_full(request) and self._may_decode(request):
                decoding.append(request)
        shares = [(request, 1) for request in decoding]
        shares += self._prompt_shares(prompts, self._token_budget - len(plain) - len(decoding))
        self._drafting.draft(decoding, self._token_budget - sum(tokens for _, tokens in shares), len(self._running))
        return plain, shares

    def _grow_full(self) -> None:
        """Give a block to each decoding request whose blocks are full; most have room for one more token."""
        for request in [request for request in self._running.values() if self._is_full(request)]:
            # One that grew may have preempted a later one of the list.
            if request.id in self._running and request.behind == 1 and self._may_decode(request):
                self._grow(request)

    def _is_full(self, request: Request) -> bool:
        """Whether a request needs another block for its next token."""
        return len(request.blocks) * self._pool.block_size <= request.computed

    def _may_decode(self, request: Request) -> bool:
        """Whether the next chunk of a request that is one token behind may be planned now."""
        if request.promised and self._alone(request):
            return False
        return not request.awaits_mask

    def _alone(self, request: Request) -> bool:
        """Whether a request's next chunk is planned only once its draws in flight have landed."""
        if request.guide is not None or request.search is not None:
            return True
        # Behind drafts in flight no chunk can be planned, even if the load has ended all drafting meanwhile.
        return bool(request.drafts) or self._drafting.allows(request, len(self._running))

    def _prompt_shares(self, prompts: Sequence[Request], budget: int) -> list[tuple[Request, int]]:
        """Deal out `budget` tokens among the running `prompts`, and waiting ones, which are admitted while it lasts."""
        running = [request for request in prompts if request.id in self._running]
        # A full queue costs a decoding step nothing while nobody can be admitted.
        waiting = self._waiting.values() if len(self._running) < self._max_running else ()
        if not budget or not (running or waiting):
            return []
        prompts = sorted([*running, *waiting], key=lambda request: (request.behind, request.arrival))
        oldest = next((request for request in sorted(prompts, key=_arrival) if not self._stays(request)), None)
        if oldest is None:
            return []
        shares: dict[Request, int] = {}
        # If there are no blocks for the oldest prompt, no other may take any.
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
        """Whether a request owns blocks, after an attempt to admit it if it waits."""
        if request.id in self._running:
            return True
        return len(self._running) < self._max_running and self._admit(request)

    def _stays(self, request: Request) -> bool:
        """Whether a waiting request must wait on even if there is room: its grammar is not compiled, its caller is at a
        limit, or a leader computes for it.
        """
        if request.id in self._running:
            return False
        if request.awaits_mask or not self._callers.may_run(request.caller):
            return True
        return self._leaders.worth_waiting_for(request, len(self._pool.match(request)))

    def _grow(self, request: Request) -> bool:
        """Find a block for the newest token of a request by preemption; False if the request itself was preempted."""
        while not self._pool.grow(request):
            if self._preempt_newest() is request:
                return False
        return True

    def _preempt_newest(self) -> Request:
        """Preempt the newest running request: it loses its blocks, keeps its output and waits again."""
        request = max(self._running.values(), key=_arrival)
        self._leave(request)
        self._pool.release(request)
        self._wait_again(request)
        self.counters.preemptions += 1
        return request

    def _wait_again(self, request: Request) -> None:
        """Queue a request that owns no blocks, and whose known tokens are to be computed or found."""
        request.computed = 0
        self._waiting[request.id] = request
        self._callers.wait(request.caller)

    def _admit(self, request: Request) -> bool:
        """Move a request from waiting to running, with blocks for all its known tokens; False if there are not enough.

        One block for each running request stays in reserve: otherwise their growth would soon preempt the newcomer.
        """
        if not self._pool.admit(request, reserve=len(self._running)):
            return False
        if request.cached_tokens is None:
            request.cached_tokens = request.computed
            self.counters.prefix_queries += len(request.prompt)
            self.counters.prefix_hits += request.computed
        del self._waiting[request.id]
        self._running[request.id] = request
        request.row, request.fresh, request.plain = self._rows.pop(), True, request.wants_tokens_alone
        self._callers.wait(request.caller, -1)
        self._callers.run(request.caller)
        if request.params.max_tokens:
            self._leaders.add(request)
        return True

    def _chunk(self, request: Request, count: int) -> Chunk:
        """Plan the next `count` tokens of a request. Only this slice of its known tokens is copied."""
        start, stop = request.computed, request.computed + count
        # A promised token is alone in its chunk: it was promised only because all tokens before it were planned.
        follows = self._draws[request.id] if request.promised and stop > request.known else None
        tokens = [*request.tokens(start, stop), *request.drafts] if follows is None else [INVALID_TOKEN]
        draws = request.draws() if stop == request.length and request.params.max_tokens else ()
        chunk = Chunk(tokens, start, request.blocks, draws, follows)
        if request.wishes:
            chunk = replace(chunk, **wishes(request, start, stop))
        request.computed = stop
        if chunk.draws:
            request.promised += 1
            request.fresh = False
        return chunk

    def _count_step(self, plan: StepPlan) -> None:
        tokens = plan.tokens
        self.counters.steps += 1
        self.counters.computed_tokens += tokens
        self.counters.step_tokens[bisect_left(STEP_TOKENS, tokens)] += 1

    def _count(self, request: Request, chunk: Chunk) -> None:
        """Count the prompt tokens of a chunk as computed, and the tokens before it as found, once each."""
        stop = min(_stop(chunk), len(request.prompt))
        if stop > request.counted:
            self.counters.prompt_tokens += stop - request.counted
            self.counters.cached_prompt_tokens += max(min(chunk.start, stop) - request.counted, 0)
            request.counted = stop

    def _accept_plainly(self, step: Step, tokens: Sequence[int], now: float) -> list[News]:
        """Take in one of `tokens` for each request of a step that decodes plainly."""
        news: list[News] = []
        going, kept = [], []
        for request, start, token in zip(step.plain, step.plan.decoding.starts, tokens, strict=True):
            if request.ended:
                continue
            if token == INVALID_TOKEN:
                news.append(self._fail_draw(request))
                continue
            request.promised -= 1
            reason = request.append(token)
            self._note_draw(request, 1, start + 1, now)
            if reason is None:
                going.append(request)
                kept.append(token)
            else:
                self._drop(request)
                self._pool.release(request)
                news.append(step_delta(request, NO_EXTRAS, reason, [token]))
        return [drawn_news(going, kept), *news] if going else news

    def _accept(self, request: Request, chunk: Chunk, outcome: ChunkResult, now: float) -> Delta:
        """Append the drawn tokens, as far as the drafts were right, and end the request if one of them was the last."""
        right = agreement(request.drafts, outcome.tokens)
        drawn = outcome.tokens[: right + 1]
        if INVALID_TOKEN in drawn:
            return self._fail_draw(request)
        request.promised -= 1
        if request.drafts:
            self._settle_drafts(request, right)
        tokens: list[int] = []
        reason = None
        while reason is None and len(tokens) < len(drawn):
            tokens.append(drawn[len(tokens)])
            reason = request.append(tokens[-1])
        self._note_draw(request, len(tokens), min(_stop(chunk) + right, request.known), now)
        self._leaders.remove(request)
        if reason is not None:
            self._drop(request)
            self._pool.release(request)
        elif len(chunk.draws) > 1:
            self._pool.shrink(request)
        if request.guide is not None and reason is None:
            request.guide.advance(tokens)
        return step_delta(request, outcome, reason, tokens)

    def _note_draw(self, request: Request, count: int, computed: int, now: float) -> None:
        """Note that a request, of which so many tokens are computed, has drawn `count` tokens."""
        # Blocks are published only here and only this far: finite logits show that the computed values are sound.
        self._pool.publish(request, computed)
        request.note_draw(now)
        self.counters.generated_tokens += count
        self._callers.spend(request.caller, count, now)

    def _fail_draw(self, request: Request) -> Delta:
        """End a request that drew no token."""
        failed = self._fail(request, NOT_FINITE)
        return refused_delta(request, NOTHING_LEFT) if request.params.restricts else failed

    def _accept_beam(
        self, request: Request, beams: Beams, chunk: Chunk, outcome: ChunkResult, now: float
    ) -> list[Delta]:
        """Take in the likeliest next tokens of a beam; the token that was drawn has no meaning."""
        request.promised -= 1
        entry = outcome.logprobs[0]
        if entry is None or INVALID_TOKEN in outcome.tokens:
            return [self._fail(request, NOT_FINITE)]
        self._note_draw(request, 1, min(_stop(chunk), request.known), now)
        self._leaders.remove(request)
        beams.landed[request] = entry
        return []

    def _advance(self, beams: Beams) -> list[Delta]:
        """Choose the next token of all beams, once all have been computed; the last delta if the search has ended."""
        if not beams.complete:
            # A beam that waits for the others makes room for them: without it they might wait for ever.
            for request in beams.landed:
                if request.id in self._running:
                    self._leave(request)
                    self._pool.release(request)
            return []
        going = beams.advance()
        if not going:
            request = beams.requests[0]
            self._drop(request)
            self._pool.release(request)
            return [search_delta(request, beams)]
        self._branch(beams, going)
        return []

    def _branch(self, beams: Beams, going: Sequence[Candidate]) -> None:
        """Make the beams' requests those of `going`. The likeliest child of a beam has its request and its blocks.

        The others find all its full blocks in the prefix cache, and compute the tokens behind them.
        """
        parents = {candidate.parent: [*candidate.parent.output] for candidate in going}
        for request in beams.requests:
            if request not in parents:
                self._leave_search(request)
        adopted: list[tuple[Request, Candidate]] = []
        heirs = set(parents)
        for candidate in going:
            request = candidate.parent
            if request in heirs:
                heirs.remove(request)
                request.output.append(candidate.token)
            else:
                request = self._sibling(request)
                request.output = [*parents[candidate.parent], candidate.token]
            if request.id not in self._running:
                self._wait_again(request)
            adopted.append((request, candidate))
        beams.adopt(adopted)

    def _sibling(self, request: Request) -> Request:
        """A new request like a beam's, without blocks."""
        return replace(
            request,
            id=next(self._beam_ids),
            blocks=array("i"),
            published=0,
            chain=[*request.chain],
            places={},
            wanted=NOTHING,
        )

    def _leave_search(self, request: Request) -> None:
        """End a beam that no further one begins with."""
        request.ended = True
        if request.id in self._running:
            self._leave(request)
            self._pool.release(request)

    def _complete(self, request: Request, outcome: ChunkResult, now: float) -> Delta:
        """End a request that generates nothing.

        Its blocks are published as far as a trial draw has shown that they are sound; a caller that tries one setting
        after the other then finds them. Nothing shows it of the others: they go unpublished.
        """
        request.note_draw(now)
        if outcome.distributions:
            self._pool.publish(request, outcome.distributions[-1].position + 1)
        self._drop(request)
        self._pool.release(request)
        return step_delta(request, outcome, "length")

    def _retake(self, request: Request, chunk: Chunk) -> None:
        """Have a chunk computed again, because its draw cannot stay. Nothing else can be in flight for the request."""
        request.promised -= 1
        request.computed = chunk.start

    def _settle_drafts(self, request: Request, right: int) -> None:
        """End the flight of a request's drafts, of which `right` were right and so count as computed."""
        request.computed += right
        self._drafting.settle(request, right)

    def _end(self, request: Request, reason: FinishReason) -> Delta:
        self._drop(request)
        self._pool.release(request)
        return last_delta(request, reason)

    def _fail(self, request: Request, message: str) -> Delta:
        self._drop(request)
        self._pool.discard(request)
        return last_delta(request, "error", message)

    def _drop(self, request: Request) -> None:
        """End a request, and with it all other beams of its search."""
        beams = None if request.search is None else self._beams.pop(request.search, None)
        if beams is not None:
            for other in beams.requests:
                self._drop(other)
                if other is not request:
                    self._pool.release(other)
            return
        request.ended = True
        if request.id in self._running:
            self._leave(request)
        elif self._waiting.pop(request.id, None):
            self._callers.wait(request.caller, -1)

    def _leave(self, request: Request) -> None:
        """Take a request from the running ones; the caller of this method releases its blocks."""
        del self._running[request.id]
        self._rows.append(request.row)
        self._callers.run(request.caller, -1)
        self._leaders.remove(request)


def _arrival(request: Request) -> int:
    return request.arrival


def _stop(chunk: Chunk) -> int:
    """Number of known tokens of the request that are computed once the chunk is."""
    return chunk.start + chunk.known


def _unsound(outcome: ChunkResult) -> bool:
    """Whether a chunk computed something that is no number."""
    return any(isnan(entry.chosen) for entry in outcome.scores) or any(
        shown.drawn == INVALID_TOKEN for shown in outcome.distributions
    )


def _breaks_off(guide: Guide, request: Request, outcome: ChunkResult) -> bool:
    """Whether a request's text, with the drawn token, could not be ended as its grammar wants within max_tokens."""
    (token, *_) = outcome.tokens
    if token == INVALID_TOKEN:
        return False
    return not guide.keeps(token, request.params.max_tokens - len(request.output) - 1)


def _expired(request: Request, now: float) -> bool:
    """Whether a waiting request has outlasted its patience; a preempted request has had its first step in time."""
    return request.patience is not None and request.queue is None and now - request.submitted > request.patience


def _grammar_failure(request: Request, now: float) -> Exception | None:
    """The reason why a request's grammar ends it."""
    if request.guide is None:
        return None
    if request.guide.failure is not None:
        return request.guide.failure
    late = request.awaits_mask and request.queue is None and now - request.submitted > COMPILE_SECONDS
    return GrammarError(f"was not compiled within {COMPILE_SECONDS:g} seconds") if late else None
