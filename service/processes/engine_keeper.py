"""Keeps the engine's process. Knows nothing of requests, which go between the engine and its clients.

The clients are told here where the engine listens.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import zmq

from service.engine.channel import EngineChannel
from service.engine.endpoint import short_parent
from service.engine.messages import Failed, FromEngine, Ready, Report, Shutdown
from service.engine.status import STARTING, EngineHealth, EngineStatus
from service.processes.child import Child, spawn
from service.processes.engine_config import EngineConfig
from service.processes.keeper import Keeper
from service.processes.restarts import DEFAULT_RESTARTS, RestartPolicy

UNSEEN = 4
"""Number of timeouts that a step may take if no comparable step has been seen yet."""


class EngineKeeper(Keeper):
    """Owns an engine's process, which outlives neither `stop` nor the process that the keeper is in."""

    def __init__(
        self,
        config: EngineConfig,
        tell: Callable[[EngineStatus], None],
        *,
        timeout_seconds: float = 60.0,
        restart_policy: RestartPolicy = DEFAULT_RESTARTS,
        grace_seconds: float = 5.0,
    ) -> None:
        """`tell` is called with every new status. A loaded engine is hung if it is silent for `timeout_seconds`.

        The timeout must be longer than a few heartbeats; an engine announces the steps that may take longer. An engine
        that is asked to leave is killed after `grace_seconds`.
        """
        super().__init__("the engine", timeout_seconds, restart_policy)
        self._config = config
        self._tell = tell
        self._grace_seconds = grace_seconds
        self._ended = False
        self._directory: Path
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Launch the engine; it loads its model in the background. May be called only once."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the engine for good, without waiting for open requests."""
        task, self._task = self._task, None
        if task is None:
            return
        self._end("the engine was stopped", final=True)
        task.cancel()
        await asyncio.wait({task})

    async def _run(self) -> None:
        self._end(await self._keep(), final=True)

    async def _live(self) -> str:
        self._tell(EngineStatus(STARTING, self._restarts))
        return await super()._live()

    def _told(self, reason: str) -> str:
        self._end(reason, final=False)
        return reason

    @asynccontextmanager
    async def _spawned(self) -> AsyncIterator[Child]:
        with ExitStack() as stack:
            temporary = tempfile.TemporaryDirectory(prefix="headlight-", dir=short_parent())
            self._directory = Path(stack.enter_context(temporary))
            try:
                channel = EngineChannel(self._directory, self._receive)
            except zmq.ZMQError as error:
                raise OSError(str(error)) from error
            stack.callback(channel.close)
            arguments = (str(self._directory), msgspec.json.encode(self._config))
            async with spawn(self._name, "service.processes.engine_process", *arguments) as process:
                try:
                    yield process
                finally:
                    channel.mute()
                    channel.send(Shutdown())
                    await process.leave(self._grace_seconds)

    def _receive(self, message: FromEngine) -> None:
        match message:
            case Report(quiet_seconds=quiet_seconds):
                self._signs += 1
                asked = UNSEEN * self._timeout_seconds if quiet_seconds is None else quiet_seconds
                self._silence = max(self._timeout_seconds, asked)
            case Ready():
                self._served()
                health = EngineHealth("ready", "")
                self._tell(EngineStatus(health, self._restarts, directory=str(self._directory), ready=message))
            case Failed(message=line):
                self._failure.set_result(line)

    def _end(self, reason: str, *, final: bool) -> None:
        """Tell that the engine is dead, unless a final status was told before."""
        if not self._ended:
            self._ended = final
            self._tell(EngineStatus(EngineHealth("dead", reason), self._restarts, final))
