"""The engine without a process: requests go in, steps are taken, reports come out.

It is synchronous and does no I/O: the owner of the process decides when to step and where reports go.

The life of a request, from its message to its last delta:

1. `EngineCore.submit` makes a `Request` of the message and checks its token ids.
2. `Scheduler.add` refuses it, or queues it among the waiting of the `Roster`.
3. `Scheduler.plan` admits it if the `Budget` has tokens for it: `BlockPool.admit` gives it blocks, and cached tokens
   count as computed.
4. Each plan holds a chunk of its next tokens (prefill), until the computed tokens have caught up with the known.
5. `Runner.start` computes the plan and draws a token for each request that has caught up.
6. `Scheduler.commit` has the `Landing` take in the token, publish full blocks to the prefix cache and make news of it.
7. Steps 4 to 6 repeat with one token at a time (decode). A preempted request loses its blocks and returns to step 3.
8. A stop token, max_tokens, a cancellation or a failure ends it: its blocks are released, its last delta is reported.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal

from model.contract import DeviceLostError, PendingStep, Runner, StepPlan, StepResult
from service.engine.block_events import BlockEvent, BlockEvents
from service.engine.blocks import BlockPool
from service.engine.callers import NO_LIMITS, CallerLimits
from service.engine.drafts import NO_DRAFTS, DraftPolicy
from service.engine.grammar_tokens import Vocabulary
from service.engine.grammars import Grammars
from service.engine.messages import Cancel, Delta, EngineStats, News, Report, Submit
from service.engine.pace import Pace
from service.engine.request import Request
from service.engine.scheduler import Scheduler

FAILED = "the engine failed in a step of this request"
"""The message that a client gets; the exception's own text may hold anything and goes to the log."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Started:
    """A step in flight: the runner's pending result, the tokens it computes, and its start in seconds."""

    pending: PendingStep
    tokens: int
    began: float


class EngineCore:
    """Joins a scheduler with a runner, and isolates failures.

    A step that raises is run again one request at a time, and only the requests that fail alone end.

    Where the runner works apart from the host (`Runner.lookahead`), the next step is started before the running one has
    landed, so that reporting, receiving and planning take place while the runner computes. The masks of its draws may
    depend on the tokens of the running one; they are then given to it once that has landed.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        token_budget: int,
        max_running: int,
        caller_limits: CallerLimits = NO_LIMITS,
        drafts: DraftPolicy = NO_DRAFTS,
        clock: Callable[[], float] = time.perf_counter,
        announce: Callable[[float | None], None] = lambda seconds: None,
        read_vocabulary: Callable[[], Vocabulary] | None = None,
        publish: Callable[[Sequence[BlockEvent]], bool] | None = None,
    ) -> None:
        """`clock` gives seconds. Before each step `announce` gets the seconds that it may take, or None if unknown.

        `read_vocabulary` is called in a thread; without it, requests with a grammar end with an error.

        `publish` gets the prefix cache's events of each step; it must not wait, and returns False if it dropped them.

        `drafts` and the limits are the `Scheduler`'s. Raises ValueError as that does.
        """
        limits = runner.limits
        self._runner = runner
        self._clock = clock
        self._announce = announce
        self._pace = Pace()
        self._vocab_size = limits.vocab_size
        self._publish = publish
        self._events = BlockEvents(limits.block_size) if publish else None
        self._pool = BlockPool(limits.num_blocks, limits.block_size, self._events)
        self._scheduler = Scheduler(
            self._pool,
            token_budget=token_budget,
            max_running=max_running,
            caller_limits=caller_limits,
            drafts=drafts,
        )
        self._grammars = Grammars(read_vocabulary, limits.vocab_size) if read_vocabulary else None
        self._in_flight: deque[_Started] = deque()
        self._ended = 0.0
        """Moment of the newest step's end, in seconds on the clock."""
        self._unreported: list[News] = []
        self._seconds = {"schedule": 0.0, "forward": 0.0, "sample": 0.0, "deliver": 0.0}

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to compute or to report."""
        return bool(self._unreported) or self._computes

    def submit(self, message: Submit) -> None:
        """Queue a request. A request that cannot run ends with an error in the next report."""
        asked = message.request
        params = asked.params
        ids = chain(asked.prompt, params.stop_token_ids, (token for token, _ in params.logit_bias), *params.bad_words)
        if not all(0 <= token < self._vocab_size for token in ids):
            error = "a token id lies outside the vocabulary"
            self._note(Delta(message.id, [], None, finish_reason="error", error=error))
            return
        if asked.grammar and self._grammars is None:
            error = "the engine has no vocabulary for grammars"
            self._note(Delta(message.id, [], None, finish_reason="error", error=error))
            return
        request = Request(
            id=message.id,
            prompt=asked.prompt,
            params=params,
            cache_salt=asked.cache_salt,
            caller=asked.caller,
            patience=asked.patience,
            wanted=asked.wanted,
            submitted=self._clock(),
            guide=self._grammars.guide(asked.grammar) if asked.grammar and self._grammars else None,
        )
        self._note(self._scheduler.add(request, asked.beams))

    def cancel(self, message: Cancel) -> None:
        """End a request; its last delta is in the next report."""
        self._note(self._scheduler.cancel(message.id))

    def step(self) -> Report | None:
        """Start the steps that are due, land the oldest and report the news; None if there was nothing to do.

        Raises DeviceLostError if no further step can succeed.
        """
        if not self.has_work:
            return None
        news, self._unreported = self._unreported, []
        news += self._scheduler.expire(self._clock())
        news += self._scheduler.reject(self._clock())
        if self._computes:
            news += self._compute()
        with self.measured("deliver"):
            self._publish_events()
            return Report(news, self.stats())

    def stats(self) -> EngineStats:
        """The state after the last step."""
        return EngineStats(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            blocks_used=self._pool.used,
            blocks_total=self._pool.num_blocks,
            schedule_seconds=self._seconds["schedule"],
            forward_seconds=self._seconds["forward"],
            sample_seconds=self._seconds["sample"],
            deliver_seconds=self._seconds["deliver"],
            totals=self._scheduler.counters.copied(),
        )

    @contextmanager
    def measured(self, phase: Literal["schedule", "deliver"]) -> Iterator[float]:
        """Add the duration of the `with` to a phase of the statistics; yields the moment it began, in seconds."""
        began = self._clock()
        try:
            yield began
        finally:
            self._seconds[phase] += self._clock() - began

    def check(self) -> None:
        """Raise PoolError if the block pool's books do not balance. Costs O(pool), for tests."""
        self._scheduler.check()

    @property
    def _computes(self) -> bool:
        return bool(self._in_flight) or self._scheduler.has_work

    def _compute(self) -> list[News]:
        """Start steps until the runner has its lookahead, then land the oldest; returns its news."""
        begun = self._succeeds(self._draw)
        while begun and len(self._in_flight) <= self._runner.lookahead and (plan := self._plan()):
            begun = self._succeeds(partial(self._launch, plan))
        if not begun:
            # No plan can follow one that was not started; the steps before it land first, as always.
            landed = []
            while self._in_flight:
                landed += self._land()
            return landed + self._isolate()
        if not self._in_flight:
            self._scheduler.await_grammars()
            return []
        return self._land()

    def _publish_events(self) -> None:
        if self._publish and self._events and (events := self._events.take()):
            self._scheduler.counters.event_batches += 1
            self._scheduler.counters.dropped_event_batches += not self._publish(events)

    def _plan(self) -> StepPlan | None:
        with self.measured("schedule") as now:
            return self._scheduler.plan(now)

    def _succeeds(self, begin: Callable[[], None]) -> bool:
        """Whether a step, or its draws, can be begun."""
        try:
            begin()
        except DeviceLostError:
            raise
        except Exception:
            logger.exception("a step failed")
            return False
        return True

    def _launch(self, plan: StepPlan) -> None:
        self._in_flight.append(self._start(plan))

    def _draw(self) -> None:
        """Begin the draws of the newest step if they await masks: it is the only one in flight."""
        if self._scheduler.awaits_masks:
            started = self._in_flight.pop()  # It cannot land if this fails.
            self._scheduler.give_masks()
            started.pending.draw()
            self._in_flight.append(started)

    def _land(self) -> list[News]:
        """Wait for the oldest step in flight; returns its news."""
        try:
            landed = self._result(self._in_flight.popleft())
        except DeviceLostError:
            raise
        except Exception:
            logger.exception("a step failed")
            # Later steps in flight have read the values that the failed step left behind, so it cannot be run again.
            return [*self._scheduler.fail(FAILED)] if self._scheduler.in_flight > 1 else self._isolate()
        return self._commit(*landed)

    def _start(self, plan: StepPlan) -> "_Started":
        tokens = plan.tokens
        self._announce(self._pace.quiet_seconds(tokens))
        began = self._clock()
        return _Started(self._runner.start(plan), tokens, began)

    def _result(self, started: "_Started") -> tuple[StepResult, float]:
        """The result of a step, and the seconds from its start to its end, without those of the step before it."""
        result = started.pending.result()
        now = self._clock()
        self._pace.add(started.tokens, now - started.began)
        seconds = now - max(started.began, self._ended)
        self._ended = now
        return result, seconds

    def _commit(self, result: StepResult, seconds: float) -> list[News]:
        self._seconds["forward"] += result.forward_seconds
        self._seconds["sample"] += result.sample_seconds
        with self.measured("schedule") as now:
            news = self._scheduler.commit(result, now, seconds)
            if self._grammars:
                self._grammars.begin_moves()
            return news

    def _isolate(self) -> list[News]:
        """Run the only step in flight, which failed, again one request at a time; the requests that fail alone end.

        Values that the failed step wrote already are overwritten with the same values.
        """
        news: list[News] = []
        for plan in self._scheduler.take_apart():
            try:
                landed = self._result(self._start(plan))
            except DeviceLostError:
                raise
            except Exception:
                logger.exception("a request failed")
                news += self._scheduler.fail(FAILED)
            else:
                news += self._commit(*landed)
        return news

    def _note(self, delta: Delta | None) -> None:
        if delta is not None:
            self._unreported.append(delta)
