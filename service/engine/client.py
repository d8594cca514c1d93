"""The asyncio side's view of the engine: requests in, streams of deltas out.

Knows nothing of text, of HTTP, or of the engine's process: `follow` is told whether there is an engine, and where.
"""

import asyncio
import secrets
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Self

from model.limits import ModelLimits, RunnerInfo
from service.engine.channel import EngineChannel
from service.engine.messages import Cancel, Delta, EngineRequest, EngineStats, FromEngine, Report, Submit
from service.engine.status import STARTING, EngineDead, EngineHealth, EngineStatus


class CompletionStream:
    """A `DeltaStream` whose deltas come from outside.

    They queue here without a limit of their own (max_tokens bounds them), so that a slow reader delays nobody else.
    Leaving the `with` before the last delta cancels the request.
    """

    def __init__(self, id: int, abandon: Callable[[int], None], ended: Callable[[], object]) -> None:
        self.id = id
        self._ended = ended
        self._abandon = abandon
        self._deltas: asyncio.Queue[Delta] = asyncio.Queue()
        self._finished = False

    def push(self, delta: Delta) -> None:
        """Append a delta; the client calls it. There is always a last delta, after which the engine is done with the
        request.
        """
        self._deltas.put_nowait(delta)
        if delta.finish_reason is not None:
            self._ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    @property
    def ahead(self) -> bool:
        return not self._deltas.empty()

    def cancel(self) -> None:
        self._abandon(self.id)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        if self._finished:
            raise StopAsyncIteration
        delta = await self._deltas.get()
        self._finished = delta.finish_reason is not None
        return delta


class ChannelClient:
    """An `EngineClient` of an engine in another process."""

    def __init__(self) -> None:
        self.stats = EngineStats()
        self.restarts = 0
        self.info: RunnerInfo | None = None
        self.pid: int | None = None
        self._limits: ModelLimits | None = None
        self._health = STARTING
        self._settled = asyncio.Event()
        self._streams: dict[int, CompletionStream] = {}
        # Clients that share an engine must not use the same ids.
        self._ids = count(secrets.randbits(62))
        self._channel: EngineChannel | None = None

    @property
    def limits(self) -> ModelLimits:
        if self._limits is None:
            raise EngineDead(self._health.reason)
        return self._limits

    def health(self) -> EngineHealth:
        return self._health

    async def ready(self) -> None:
        """Wait until the engine takes requests. Raises EngineDead if it never will."""
        await self._settled.wait()
        if self._health.state != "ready":
            raise EngineDead(self._health.reason)

    def follow(self, status: EngineStatus) -> None:
        """Adopt the engine's new status: connect, or end all open streams. Raises ZMQError if the connection fails."""
        self._leave(status.health.reason)
        self.restarts = status.restarts
        if status.ready is not None:
            self._channel = EngineChannel(Path(status.directory), self._receive)
            self._limits, self.info, self.pid = status.ready.limits, status.ready.info, status.ready.pid
        self._health = status.health
        if status.ready is not None or status.final:
            self._settled.set()
        else:
            self._settled.clear()

    def stop(self) -> None:
        self.follow(EngineStatus(EngineHealth("dead", "the engine was stopped"), self.restarts, final=True))

    def submit(self, request: EngineRequest, ended: Callable[[], object] = lambda: None) -> CompletionStream:
        if self._channel is None:
            raise EngineDead(self._health.reason)
        stream = CompletionStream(next(self._ids), self._abandon, ended)
        self._streams[stream.id] = stream
        self._channel.send(Submit(stream.id, request))
        return stream

    def _abandon(self, id: int) -> None:
        stream = self._streams.pop(id, None)
        if stream is not None and self._channel is not None:
            stream.push(Delta(id, [], None, finish_reason="abort"))
            self._channel.send(Cancel(id))

    def _receive(self, message: FromEngine) -> None:
        """Take in a report. Ready and Failed are ignored: `follow` tells about the engine's beginning and end."""
        if isinstance(message, Report):
            self.stats = message.stats
            for delta in message.deltas:
                self._deliver(delta)

    def _deliver(self, delta: Delta) -> None:
        """Hand a delta to its stream. Abandoned requests have none, and their late deltas are dropped."""
        finished = delta.finish_reason is not None
        stream = self._streams.pop(delta.id, None) if finished else self._streams.get(delta.id)
        if stream is not None:
            stream.push(delta)

    def _leave(self, reason: str) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self.stats = EngineStats()
        self.pid = None
        streams, self._streams = self._streams, {}
        for id, stream in streams.items():
            stream.push(Delta(id, [], None, finish_reason="lost", error=reason))
