"""`python -m benchmarks.host`: what the host does in each step, part by part, beside a device that only waits.

The engine is the real one, with its socket, its scheduler and the staging of its tensors; the device takes a given time
for a step. CPU time of the engine's thread is counted, which neighbours on the machine disturb less than the clock on
the wall; that one gives the pace: tokens drawn of those that the device could have drawn meanwhile.
"""

import argparse
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import torch
import zmq

from benchmarks.waiting import VOCABULARY, Meter, WaitingRunner
from model.contract import StepPlan, StepResult
from model.sampling_params import SamplingParams
from service.engine.core import EngineCore
from service.engine.endpoint import endpoint
from service.engine.messages import EngineRequest, Grammar, News, Ready, Report, Submit
from service.engine.server import EngineServer

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.5},
    "log-probabilities": {"logprobs": 5},
    "JSON": {"grammar": Grammar("json_schema", '{"type": "string"}', "response_format")},
}
"""Kinds of requests: parameters, and perhaps a grammar."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The host's work in a decoding step."""

    parts: dict[str, float]
    """Milliseconds of CPU time of each part, the median of the steps."""
    pace: float
    """Tokens drawn, as a fraction of those that the device could have drawn meanwhile."""


class Words:
    """A vocabulary of single bytes and of runs of a few letters; its last token ends a completion."""

    vocab_size = VOCABULARY
    eos_token_ids: Collection[int] = (VOCABULARY - 1,)

    def token_bytes(self, token: int) -> bytes:
        if token < 256:
            return bytes([token])
        letters = bytearray()
        while token:
            token, letter = divmod(token, 26)
            letters.append(ord("a") + letter)
        return bytes(letters)

    def is_special(self, token: int) -> bool:
        return token in self.eos_token_ids

    def encode(self, text: str, *, add_special_tokens: bool, parse_special: bool) -> list[int]:
        return [*text.encode()]


class MeasuredCore(EngineCore):
    """An engine's core whose parts are charged to a meter."""

    meter: Meter

    def _plan(self) -> StepPlan | None:
        with self.meter.part("plan"):
            return super()._plan()

    def _draw(self) -> None:
        with self.meter.part("masks"):
            super()._draw()

    def _commit(self, result: StepResult, seconds: float) -> list[News]:
        with self.meter.part("commit"):
            return super()._commit(result, seconds)

    def step(self) -> Report | None:
        with self.meter.part("step"):
            return super().step()


class MeasuredServer(EngineServer):
    """An engine's server whose sending is charged to a meter, until so many steps have been reported."""

    def __init__(self, socket: zmq.Socket[bytes], core: MeasuredCore, steps: int, warm: int) -> None:
        """The first `warm` reported steps come before the measured ones."""
        limits, info = core._runner.limits, core._runner.info
        super().__init__(socket, lambda announce: core, Ready(limits, info, 0))
        self._meter, self._left, self._steps = core.meter, warm + steps, steps
        self._tokens, self._began = 0, 0.0
        self.seconds = 0.0
        """Time of the measured steps."""
        self.tokens = 0
        """Tokens drawn in them."""

    def _receive(self) -> bool:
        with self._meter.part("receive"):
            return super()._receive() and self._left > 0

    def _send(self, report: Report) -> None:
        with self._meter.part("send"):
            super()._send(report)
        self._left -= report.stats.totals.generated_tokens > 0  # Before that, grammars are compiled.
        if self._left == self._steps:
            self._began, self._tokens = time.perf_counter(), report.stats.totals.generated_tokens
        self.seconds = time.perf_counter() - self._began
        self.tokens = report.stats.totals.generated_tokens - self._tokens
        self._meter.end_step()


def engine(
    requests: int, prompt: int, steps: int, device_seconds: float, grammar: Grammar | None = None, **params: Any
) -> Measured:
    """Measure decoding steps with so many requests."""
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
                request = EngineRequest(tokens, settings, grammar=grammar)
                client.send(msgspec.msgpack.encode(Submit(id, request)))
            core = MeasuredCore(runner, token_budget=4096, max_running=requests, read_vocabulary=Words)
            core.meter = meter
            server = MeasuredServer(socket, core, steps, warm)
            server.run()
    parts = meter.milliseconds(steps)
    del parts["wait"]
    return Measured(parts, server.tokens * device_seconds / (server.seconds * requests))


def main() -> None:
    """Parse the command line, measure, print."""
    torch.set_num_threads(1)  # As beside a GPU: others would only spin.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="kinds of requests")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device-ms", type=float, default=8.0, help="time that the device takes for a step")
    args = parser.parse_args()
    for kind in args.kinds:
        for requests in args.requests:
            found = engine(requests, args.prompt, args.steps, args.device_ms / 1000, **KINDS[kind])
            told = "  ".join(f"{name} {value:.3f}" for name, value in found.parts.items())
            spent = sum(found.parts.values())
            print(f"{kind}, {requests:>4} requests: {spent:.3f} ms a step, pace {found.pace:.0%}: {told}", flush=True)


if __name__ == "__main__":
    main()
