"""`python -m benchmarks.host`: what the host does in each step, part by part, beside a device that only waits.

The engine is the real one, with its socket, its scheduler and the staging of its tensors; the device takes a given time
for a step and draws nothing but a counter. CPU time of the engine's thread is counted, which neighbours on the machine
disturb less than the clock on the wall.
"""

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import torch
import zmq

from model.batch import make_batch
from model.contract import Draws, Runner, StepPlan, StepResult
from model.limits import ModelLimits, RunnerInfo
from model.runner import chunk_results
from model.runner_config import RunnerConfig
from model.sampling.choice import Choice
from model.sampling.memory import TokenMemory
from model.sampling.settings import BatchSettings, settings_of
from model.sampling_params import SamplingParams
from service.engine.core import EngineCore
from service.engine.endpoint import endpoint
from service.engine.messages import EngineRequest, Ready, Report, Submit
from service.engine.server import EngineServer

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


class WaitingStep:
    """A step on a device that is busy until `end`, in seconds of `time.perf_counter`."""

    def __init__(self, plan: StepPlan, draws: Draws, end: float, meter: Meter) -> None:
        self._plan, self._draws, self._end, self._meter = plan, draws, end, meter

    def result(self) -> StepResult:
        with self._meter.part("wait"):
            time.sleep(max(0.0, self._end - time.perf_counter()))
            drawn = torch.from_numpy(FIRST + np.array(self._draws.indices, np.int64) * 37 % (30_000 - FIRST))
        with self._meter.part("read"):
            return StepResult(*chunk_results(self._plan, self._draws, Choice(drawn, None)))


class WaitingRunner:
    """A runner that stages its tensors as the real one does, for a device that takes `seconds` for each step."""

    lookahead = 1
    info = RunnerInfo(device="waiting", dtype="", cache_dtype="", backend="none")

    def __init__(self, seconds: float, requests: int, context: int, meter: Meter) -> None:
        self.limits = ModelLimits(
            VOCABULARY, context, requests * context // 16, 16, layers=1, heads=1, encoding_width=0
        )
        self._seconds, self._meter = seconds, meter
        self._memory = TokenMemory(context, CPU)
        self._settings: BatchSettings | None = None
        self._free = 0.0

    def start(self, plan: StepPlan) -> WaitingStep:
        with self._meter.part("stage"):
            make_batch(plan, self.limits.block_size, CPU)
            if draws := plan.draws():
                self._settings = settings_of(draws, CPU, self._settings)
                self._memory.begin(draws)
                self._settings.batch(draws)
                logits = torch.zeros(len(draws), 1)
                for transform in self._settings.transforms:
                    transform(logits, draws, self._memory)
        self._free = max(self._free, time.perf_counter()) + self._seconds
        return WaitingStep(plan, draws, self._free, self._meter)


def load(config: RunnerConfig) -> Runner:
    """A runner for an engine's process: a device that waits."""
    torch.set_num_threads(1)
    return WaitingRunner(float(os.environ[DEVICE_SECONDS]), config.max_running, CONTEXT, Meter())


class MeasuredCore(EngineCore):
    """An engine's core whose parts are charged to a meter."""

    meter: Meter

    def _plan(self) -> StepPlan | None:
        with self.meter.part("plan"):
            return super()._plan()

    def _commit(self, result: StepResult, seconds: float) -> list[Any]:
        with self.meter.part("commit"):
            return super()._commit(result, seconds)

    def step(self) -> Report | None:
        with self.meter.part("step"):
            return super().step()


class MeasuredServer(EngineServer):
    """An engine's server whose sending is charged to a meter, until so many steps have been reported."""

    def __init__(self, socket: zmq.Socket[bytes], core: MeasuredCore, steps: int) -> None:
        limits, info = core._runner.limits, core._runner.info
        super().__init__(socket, lambda announce: core, Ready(limits, info, 0))
        self._meter, self._left = core.meter, steps

    def _receive(self) -> bool:
        with self._meter.part("receive"):
            return super()._receive() and self._left > 0

    def _send(self, report: Report) -> None:
        with self._meter.part("send"):
            super()._send(report)
        self._left -= 1
        self._meter.end_step()


def engine(requests: int, prompt: int, steps: int, device_seconds: float, **params: Any) -> dict[str, float]:
    """Milliseconds of CPU time of each part of a decoding step with so many requests, the median of the steps."""
    warm = 20 + requests * prompt // 4096
    context = -(-(prompt + 2 * (steps + warm)) // 16) * 16
    meter = Meter()
    runner = WaitingRunner(device_seconds, requests, context, meter)
    with TemporaryDirectory() as folder, zmq.Context() as sockets:
        sockets.linger = 0
        with sockets.socket(zmq.ROUTER) as socket, sockets.socket(zmq.DEALER) as client:
            for end in (socket, client):
                end.set_hwm(0)
            socket.router_mandatory = client.probe_router = 1
            socket.bind(endpoint(Path(folder)))
            client.connect(endpoint(Path(folder)))
            for id in range(requests):
                tokens = [(id * 7919 + place) % VOCABULARY for place in range(prompt)]
                settings = SamplingParams(max_tokens=context - prompt, seed=id, **params)
                client.send(msgspec.msgpack.encode(Submit(id, EngineRequest(tokens, settings))))
            core = MeasuredCore(runner, token_budget=4096, max_running=requests)
            core.meter = meter
            MeasuredServer(socket, core, warm + steps).run()
    parts = meter.milliseconds(steps)
    return {part: milliseconds for part, milliseconds in parts.items() if part != "wait"}


def main() -> None:
    """Parse the command line, measure, print."""
    torch.set_num_threads(1)  # As beside a GPU: others would only spin.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--prompt", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device-ms", type=float, default=8.0, help="time that the device takes for a step")
    args = parser.parse_args()
    for requests in args.requests:
        parts = engine(requests, args.prompt, args.steps, args.device_ms / 1000)
        told = "  ".join(f"{name} {value:.3f}" for name, value in parts.items())
        print(f"engine, {requests:>4} requests: {sum(parts.values()):.3f} ms a step: {told}", flush=True)


if __name__ == "__main__":
    main()
