"""The asyncio side's view of the engine: requests in, streams of tokens out, and the engine kept alive.

Knows nothing of text or of HTTP, and nothing of how the engine's process is started and spoken to.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Literal, Self

import zmq

from model.contract import ModelLimits, RunnerInfo, SamplingParams
from service.engine.channel import EngineChannel, launch
from service.engine.messages import Cancel, Delta, EngineStats, Failed, FromEngine, Ready, Report, Submit
from service.engine.process import EngineConfig

SILENT_TICKS = 4
"""In how many parts the time-out of a silent engine is waited for."""

logger = logging.getLogger(__name__)


class EngineDead(Exception):
    """The engine takes no requests; one line that says why."""


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """Whether the engine works, and if not, why."""

    state: Literal["starting", "ready", "dead"]
    reason: str
    """One line; empty while ready."""

    @property
    def alive(self) -> bool:
        """Whether there is an engine, or one is on its way."""
        return self.state != "dead"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often an engine that died is started again."""

    limit: int = 5
    """Restarts within the window; the next death is final."""
    window_seconds: float = 600.0
    backoff_seconds: float = 0.5
    """The wait before the first restart; it doubles with each further one in the window."""


DEFAULT_RESTARTS = RestartPolicy()


class CompletionStream:
    """The deltas of one request, in order, up to the one with a finish reason.

    They wait here without limit (a request's max_tokens is one), so that who reads slowly delays nobody else.
    Leaving the `with` before the last delta cancels the request.
    """

    def __init__(self, id: int, abandon: Callable[[int], None]) -> None:
        self.id = id
        self._abandon = abandon
        self._deltas: asyncio.Queue[Delta] = asyncio.Queue()
        self._finished = False

    def push(self, delta: Delta) -> None:
        """For the client: append a delta."""
        self._deltas.put_nowait(delta)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._abandon(self.id)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        if self._finished:
            raise StopAsyncIteration
        delta = await self._deltas.get()
        self._finished = delta.finish_reason is not None
        return delta


class EngineClient:
    """Owns the engine's process: starts it, feeds it, and replaces it when it dies or hangs.

    However the engine ends, every open stream gets a last delta with finish reason "error".
    """

    stats: EngineStats
    """The latest report's; all zero while there is no engine."""
    restarts: int
    """How often the engine was started again."""
    info: RunnerInfo | None
    """What the runner was made of; None before a model was first loaded."""
    pid: int | None
    """The engine's process, while it has a model."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        timeout_seconds: float = 60.0,
        restart_policy: RestartPolicy = DEFAULT_RESTARTS,
        grace_seconds: float = 5.0,
    ) -> None:
        """An engine that reports nothing for `timeout_seconds` once it is loaded counts as hung.

        That time must be longer than any step takes, and than a few heartbeats. `grace_seconds` is what an engine
        that is asked to leave has before it is killed.
        """
        self.stats = EngineStats()
        self.restarts = 0
        self.info = None
        self.pid = None
        self._config = config
        self._timeout_seconds = timeout_seconds
        self._restart_policy = restart_policy
        self._grace_seconds = grace_seconds
        self._limits: ModelLimits | None = None
        self._health = EngineHealth("starting", "the engine is loading the model")
        self._settled = asyncio.Event()
        self._streams: dict[int, CompletionStream] = {}
        # Clients that share an engine must not use the same ids.
        self._ids = count(secrets.randbits(62))
        self._reports = 0
        self._channel: EngineChannel
        self._failure: asyncio.Future[str]
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def limits(self) -> ModelLimits:
        """The loaded model's. Raises EngineDead before a model was first loaded."""
        if self._limits is None:
            raise EngineDead(self._health.reason)
        return self._limits

    def health(self) -> EngineHealth:
        """The engine's state as far as it is known."""
        return self._health

    async def start(self) -> None:
        """Launch the engine; it loads its model in the background. Only once."""
        self._supervisor = asyncio.create_task(self._supervise())

    async def ready(self) -> None:
        """Wait until the engine takes requests. Raises EngineDead if it never will."""
        await self._settled.wait()
        if self._health.state != "ready":
            raise EngineDead(self._health.reason)

    async def stop(self) -> None:
        """End the engine for good, without waiting for open requests; nothing of it remains."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        supervisor.cancel()
        await asyncio.wait({supervisor})
        self._end("the engine was stopped")
        self._settled.set()

    def submit(self, prompt: list[int], params: SamplingParams, cache_salt: str = "") -> CompletionStream:
        """Start a request, which must fit the limits. Raises EngineDead if the engine is not ready."""
        if self._health.state != "ready":
            raise EngineDead(self._health.reason)
        stream = CompletionStream(next(self._ids), self._abandon)
        self._streams[stream.id] = stream
        self._channel.send(Submit(stream.id, prompt, params, cache_salt))
        return stream

    def _abandon(self, id: int) -> None:
        stream = self._streams.pop(id, None)
        if stream is not None:
            stream.push(Delta(id, [], None, finish_reason="abort"))
            self._channel.send(Cancel(id))

    def _receive(self, message: FromEngine) -> None:
        match message:
            case Report(deltas=deltas, stats=stats):
                self._reports += 1
                self.stats = stats
                for delta in deltas:
                    self._deliver(delta)
            case Ready(limits=limits, info=info, pid=pid):
                self._limits, self.info, self.pid = limits, info, pid
                self._health = EngineHealth("ready", "")
                self._settled.set()
            case Failed(message=line):
                self._failure.set_result(line)

    def _deliver(self, delta: Delta) -> None:
        """Abandoned requests still have deltas on their way; those have no stream any more."""
        finished = delta.finish_reason is not None
        stream = self._streams.pop(delta.id, None) if finished else self._streams.get(delta.id)
        if stream is not None:
            stream.push(delta)

    async def _supervise(self) -> None:
        """Keep an engine alive: life after life, until the policy says that it is no use."""
        policy = self._restart_policy
        recent: deque[float] = deque()
        while True:
            await self._live()
            now = asyncio.get_running_loop().time()
            while recent and recent[0] <= now - policy.window_seconds:
                recent.popleft()
            # What kept a model from loading the first time will most likely not go away.
            if self._limits is None:
                self._settled.set()  # Whoever waits to be ready is told the reason.
                return
            if len(recent) >= policy.limit:
                logger.error("%s; it is not started again", self._health.reason)
                self._settled.set()
                return
            delay = policy.backoff_seconds * 2 ** len(recent)
            logger.error("%s; it is started again in %.1f seconds", self._health.reason, delay)
            recent.append(now)
            await asyncio.sleep(delay)
            self.restarts += 1

    async def _live(self) -> None:
        """One life of the engine, from its launch to its end."""
        self._health = EngineHealth("starting", "the engine is loading the model")
        self._failure = asyncio.get_running_loop().create_future()
        reason = "the engine was stopped"
        try:
            async with launch(self._config, self._receive, self._grace_seconds) as self._channel:
                try:
                    reason = await self._death()
                finally:
                    self._end(reason)
        except (OSError, zmq.ZMQError) as error:
            self._end(f"the engine could not be started: {error}")

    async def _death(self) -> str:
        """Wait for the engine's end, whichever way it comes; one line that says which it was."""
        # In the order of what says most, should two of them be known at the same moment.
        ways = [self._failure, asyncio.create_task(self._silence()), asyncio.create_task(self._channel.exited())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            return next(way.result() for way in ways if way.done())
        finally:
            for way in ways:
                way.cancel()

    async def _silence(self) -> str:
        """Wait until a loaded engine has reported nothing for too long, and kill it.

        Silence is counted in ticks, not read off a clock: a pause of this process (a suspended machine, a debugger)
        is one tick, however long, and is not taken for the engine's.
        """
        silent = 0
        while silent < SILENT_TICKS:
            heard = self._reports
            await asyncio.sleep(self._timeout_seconds / SILENT_TICKS)
            silent = 0 if self._health.state == "starting" or self._reports != heard else silent + 1
        self._channel.kill()
        return f"the engine hung: it reported nothing for {self._timeout_seconds:g} seconds"

    def _end(self, reason: str) -> None:
        self._health = EngineHealth("dead", reason)
        self._settled.clear()
        self.stats = EngineStats()
        self.pid = None
        streams, self._streams = self._streams, {}
        for id, stream in streams.items():
            stream.push(Delta(id, [], None, finish_reason="error", error=reason))
