"""The engine without a process: requests go in, steps are taken, reports come out.

Synchronous, and without I/O: whoever owns the process decides when to step and where reports go.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Literal

from model.contract import DeviceLostError, PendingStep, Runner, StepPlan, StepResult
from service.engine.blocks import BlockPool
from service.engine.callers import NO_LIMITS, CallerLimits
from service.engine.messages import Cancel, Delta, EngineStats, Report, Submit
from service.engine.pace import Pace
from service.engine.request import Request
from service.engine.scheduler import Scheduler

FAILED = "the engine failed in a step of this request"
"""What a client learns: an exception's text may hold anything."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Started:
    """A step in flight, how many tokens it computes, and when it was started."""

    pending: PendingStep
    tokens: int
    began: float


class EngineCore:
    """Joins a scheduler with a runner. A step that raises is run again request by request: who fails alone ends alone.

    Where the runner works apart from the host (`Runner.lookahead`), the next step is started before the one that runs
    is landed: reporting, receiving and planning take place while the runner computes.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        token_budget: int,
        max_running: int,
        caller_limits: CallerLimits = NO_LIMITS,
        clock: Callable[[], float] = time.perf_counter,
        announce: Callable[[float | None], None] = lambda seconds: None,
    ) -> None:
        """`clock` gives seconds; before each step `announce` is told how many it may take, if that is known.

        Raises ValueError as `Scheduler` does.
        """
        limits = runner.limits
        self._runner = runner
        self._clock = clock
        self._announce = announce
        self._pace = Pace()
        self._vocab_size = limits.vocab_size
        self._pool = BlockPool(limits.num_blocks, limits.block_size)
        self._scheduler = Scheduler(
            self._pool, token_budget=token_budget, max_running=max_running, caller_limits=caller_limits
        )
        self._in_flight: deque[_Started] = deque()
        self._unreported: list[Delta] = []
        self._seconds = {"schedule": 0.0, "forward": 0.0, "sample": 0.0, "deliver": 0.0}

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to compute or to report."""
        return bool(self._unreported) or self._computes

    def submit(self, message: Submit) -> None:
        """Queue a request. One that cannot run ends with an error in the next report."""
        params = message.params
        ids = chain(message.prompt, params.stop_token_ids, (token for token, _ in params.logit_bias))
        if not all(0 <= token < self._vocab_size for token in ids):
            error = "a token id lies outside the vocabulary"
            self._note(Delta(message.id, [], None, finish_reason="error", error=error))
            return
        request = Request(
            id=message.id,
            prompt=message.prompt,
            params=params,
            cache_salt=message.cache_salt,
            caller=message.caller,
            patience=message.patience,
            submitted=self._clock(),
        )
        self._note(self._scheduler.add(request))

    def cancel(self, message: Cancel) -> None:
        """End a request; its last delta is in the next report."""
        self._note(self._scheduler.cancel(message.id))

    def step(self) -> Report | None:
        """Have steps run, land the oldest and say what came of it; None if there was nothing to do.

        Raises DeviceLostError if no further step can succeed.
        """
        if not self.has_work:
            return None
        deltas, self._unreported = self._unreported, []
        deltas += self._scheduler.expire(self._clock())
        if self._computes:
            deltas += self._compute()
        with self.measured("deliver"):
            return Report(deltas, self.stats())

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
            **asdict(self._scheduler.counters),
        )

    @contextmanager
    def measured(self, phase: Literal["schedule", "deliver"]) -> Iterator[float]:
        """Count the time until its end for a phase in the statistics; gives the moment it began."""
        began = self._clock()
        try:
            yield began
        finally:
            self._seconds[phase] += self._clock() - began

    def check(self) -> None:
        """Raise PoolError if the block pool's books do not balance. O(pool), for tests."""
        self._scheduler.check()

    @property
    def _computes(self) -> bool:
        return bool(self._in_flight) or self._scheduler.has_work

    def _compute(self) -> list[Delta]:
        """Start every step that the runner is to have by now, then land the oldest."""
        while len(self._in_flight) <= self._runner.lookahead and (plan := self._plan()):
            try:
                self._in_flight.append(self._start(plan))
            except DeviceLostError:
                raise
            except Exception:
                logger.exception("a step failed")
                # No plan can follow one that was not started; those before it land first, as always.
                landed = []
                while self._in_flight:
                    landed += self._land()
                return landed + self._isolate()
        return self._land()

    def _plan(self) -> StepPlan | None:
        with self.measured("schedule") as now:
            return self._scheduler.plan(now)

    def _land(self) -> list[Delta]:
        """Wait for the oldest step in flight, and say what came of it."""
        try:
            result = self._result(self._in_flight.popleft())
        except DeviceLostError:
            raise
        except Exception:
            logger.exception("a step failed")
            # What was started after it has read what it left behind.
            return self._scheduler.fail(FAILED) if self._in_flight else self._isolate()
        return self._commit(result)

    def _start(self, plan: StepPlan) -> "_Started":
        tokens = sum(len(chunk.tokens) for chunk in plan.chunks)
        self._announce(self._pace.patience(tokens))
        began = self._clock()
        return _Started(self._runner.start(plan), tokens, began)

    def _result(self, started: "_Started") -> StepResult:
        result = started.pending.result()
        self._pace.add(started.tokens, self._clock() - started.began)
        return result

    def _commit(self, result: StepResult) -> list[Delta]:
        self._seconds["forward"] += result.forward_seconds
        self._seconds["sample"] += result.sample_seconds
        with self.measured("schedule") as now:
            return self._scheduler.commit(result, now)

    def _isolate(self) -> list[Delta]:
        """Run the only step in flight, which failed, again for one request at a time; those that fail alone end.

        What a failed step has written is written once more, with the same values.
        """
        deltas = []
        for plan in self._scheduler.take_apart():
            try:
                result = self._result(self._start(plan))
            except DeviceLostError:
                raise
            except Exception:
                logger.exception("a request failed")
                deltas += self._scheduler.fail(FAILED)
            else:
                deltas += self._commit(result)
        return deltas

    def _note(self, delta: Delta | None) -> None:
        if delta is not None:
            self._unreported.append(delta)
