"""A device that only waits, for measuring the host beside it.

Its runner stages the tensors of each step as the real one does; the step then takes a given time, and draws tokens that
are counted up, or the lowest one that a grammar allows.
"""

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import cast

import numpy as np
import torch
from torch import Tensor

from kernels.backend import Backend, Penalties, TokenCounts
from model.batch import make_batch
from model.contract import Draws, Runner, StepPlan, StepResult
from model.limits import ModelLimits, RunnerInfo
from model.runner import chunk_results
from model.runner_config import RunnerConfig
from model.sampling.choice import Choice
from model.sampling.memory import TokenMemory
from model.sampling.settings import BatchSettings, settings_of

CPU = torch.device("cpu")
VOCABULARY = 2**18
FIRST = 1_000
"""The first token that is drawn: vocabularies begin with special tokens. The last is below every vocabulary's end."""

DEVICE_SECONDS = "BENCHMARK_DEVICE_SECONDS"
"""Variable that tells an engine's process how long its device takes for a step."""
CONTEXT = 8192


class Meter:
    """CPU seconds of this thread by the part of a step that they went to."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Seconds of the step that runs."""
        self.steps: list[dict[str, float]] = []
        """Seconds of each step that ended."""
        self._part: list[str] = []
        self._since = time.thread_time()

    def end_step(self) -> None:
        """Keep the seconds of the step that runs, and begin the next."""
        self._charge()
        self.steps.append(dict(self.seconds))
        self.seconds.clear()

    def milliseconds(self, steps: int) -> dict[str, float]:
        """The median of each part over the last steps, which no garbage collection or neighbour moves."""
        kept = self.steps[-steps:]
        return {part: 1000 * median(step.get(part, 0.0) for step in kept) for part in kept[-1]}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge the `with` to a part, and nothing of it to the part around it."""
        self._charge()
        self._part.append(name)
        try:
            yield
        finally:
            self._charge()
            self._part.pop()

    def _charge(self) -> None:
        now = time.thread_time()
        if self._part:
            self.seconds[self._part[-1]] += now - self._since
        self._since = now


class IdleBackend:
    """The part of a backend that edits logits, without doing so."""

    def count_tokens(self, counts: TokenCounts, requests: Tensor, tokens: Tensor) -> None:
        """See `Backend.count_tokens`."""

    def penalise(self, logits: Tensor, counts: TokenCounts, penalties: Penalties) -> None:
        """See `Backend.penalise`."""

    def restrict(self, logits: Tensor, rows: Tensor, masks: Tensor) -> None:
        """See `Backend.restrict`."""


class WaitingStep:
    """A step on a device that is busy until `end`, in seconds of `time.perf_counter`."""

    def __init__(self, runner: "WaitingRunner", plan: StepPlan, draws: Draws, end: float) -> None:
        self._runner, self._plan, self._draws, self._end = runner, plan, draws, end

    def draw(self) -> None:
        self._runner.stage_draws(self._draws)
        self._end = self._runner.free = max(self._end, time.perf_counter())

    def result(self) -> StepResult:
        meter = self._runner.meter
        with meter.part("wait"):
            time.sleep(max(0.0, self._end - time.perf_counter()))
            choice = _choice(self._draws)
        with meter.part("read"):
            return StepResult(*chunk_results(self._plan, self._draws, choice))


class WaitingRunner:
    """A runner that stages its tensors as the real one does, for a device that takes `seconds` for each step."""

    lookahead = 1
    info = RunnerInfo(device="waiting", dtype="", cache_dtype="", backend="none")

    def __init__(self, seconds: float, requests: int, context: int, meter: Meter) -> None:
        self.limits = ModelLimits(
            VOCABULARY, context, requests * context // 16, 16, layers=1, heads=1, encoding_width=0
        )
        self.meter = meter
        self.free = 0.0
        """Moment at which the device has done all of its work, in seconds of `time.perf_counter`."""
        self._seconds = seconds
        self._memory = TokenMemory(context, cast(Backend, IdleBackend()), CPU)
        self._logits = torch.empty(requests, 0)
        self._settings: BatchSettings | None = None

    def start(self, plan: StepPlan) -> WaitingStep:
        draws = plan.draws()
        with self.meter.part("stage"):
            make_batch(plan, self.limits.block_size, CPU)
        if not plan.awaits_masks:
            self.stage_draws(draws)
        self.free = max(self.free, time.perf_counter()) + self._seconds
        return WaitingStep(self, plan, draws, self.free)

    def stage_draws(self, draws: Draws) -> None:
        """Stage what the draws of a step need, and have their logits transformed by a backend that does nothing."""
        if not draws:
            return
        with self.meter.part("stage"):
            self._settings = settings_of(draws, CPU, self._settings)
            self._memory.begin(draws)
            self._settings.batch(draws)
            for transform in self._settings.transforms:
                transform(self._logits, draws, self._memory)
            self._memory.add(draws, torch.zeros(len(draws), dtype=torch.int64))


def load(config: RunnerConfig) -> Runner:
    """A runner for an engine's process: a device that waits."""
    torch.set_num_threads(1)
    return WaitingRunner(float(os.environ[DEVICE_SECONDS]), config.max_running, CONTEXT, Meter())


def _choice(draws: Draws) -> Choice:
    """The tokens that are drawn, and as many log-probabilities as any draw asks for."""
    tokens = FIRST + np.array(draws.indices, np.int64) * 37 % (30_000 - FIRST)
    first = len(draws) - len(draws.others)
    for row, draw in enumerate(draws.others, first):
        if draw.allowed is not None:
            tokens[row] = _lowest(draw.allowed)
    asked = [params.logprobs for params in draws.params if params.logprobs is not None]
    table = torch.zeros(len(asked), 2 + 2 * max(asked), dtype=torch.float64) if asked else None
    return Choice(torch.from_numpy(tokens), table)


def _lowest(mask: bytes) -> int:
    """The lowest token of a mask."""
    octets = mask.lstrip(b"\0")
    return 8 * (len(mask) - len(octets)) + (octets[0] & -octets[0]).bit_length() - 1
