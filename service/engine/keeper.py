"""The life of the engine's process: it is started, watched, and started again when it dies or hangs.

Knows nothing of requests: those are between the engine and its clients, who are told here where it is.
"""

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import zmq

from service.engine.channel import EngineChannel
from service.engine.child import Child, launch, silence
from service.engine.messages import Failed, FromEngine, Ready, Report, Shutdown
from service.engine.process import EngineConfig
from service.engine.restarts import DEFAULT_RESTARTS, RestartPolicy, Restarts
from service.engine.status import STARTING, EngineHealth, EngineStatus

UNSEEN = 4
"""Timeouts that a step may take of which nothing is known yet."""

logger = logging.getLogger(__name__)


class EngineKeeper:
    """Owns an engine's process; nothing of it outlives `stop`, or the process that the keeper is in."""

    def __init__(
        self,
        config: EngineConfig,
        tell: Callable[[EngineStatus], None],
        *,
        timeout_seconds: float = 60.0,
        restart_policy: RestartPolicy = DEFAULT_RESTARTS,
        grace_seconds: float = 5.0,
    ) -> None:
        """`tell` is called with every new status. An engine that reports nothing for `timeout_seconds` once it is
        loaded counts as hung.

        That time must be longer than a few heartbeats; an engine announces the steps that may take longer.
        `grace_seconds` is what an engine that is asked to leave has before it is killed.
        """
        self._config = config
        self._tell = tell
        self._timeout_seconds = timeout_seconds
        self._grace_seconds = grace_seconds
        self._history = Restarts(restart_policy)
        self._restarts = 0
        self._ever_loaded = False
        self._ended = False
        self._directory: Path
        self._loaded: asyncio.Event
        self._failure: asyncio.Future[str]
        self._reports = 0
        self._patience = timeout_seconds
        """Seconds that it may be silent now: more while a long step runs that it has announced."""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Launch the engine; it loads its model in the background. Only once."""
        self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End the engine for good, without waiting for open requests."""
        task, self._task = self._task, None
        if task is None:
            return
        self._end("the engine was stopped", final=True)
        task.cancel()
        await asyncio.wait({task})

    async def _keep(self) -> None:
        """Life after life, until it is no use."""
        while True:
            reason = await self._live()
            # What kept a model from loading the first time will most likely not go away.
            delay = self._history.after_death(asyncio.get_running_loop().time()) if self._ever_loaded else None
            if delay is None:
                if self._ever_loaded:
                    logger.error("%s; it is not started again", reason)
                self._end(reason, final=True)
                return
            logger.error("%s; it is started again in %.1f seconds", reason, delay)
            await asyncio.sleep(delay)
            self._restarts += 1

    async def _live(self) -> str:
        """One life of the engine, from its launch until nothing of it remains; one line on how it ended."""
        self._loaded = asyncio.Event()
        self._failure = asyncio.get_running_loop().create_future()
        self._patience = self._timeout_seconds
        self._tell(EngineStatus(STARTING, self._restarts))
        try:
            async with self._launched() as process:
                reason = await self._death(process)
                # At once, since it may take its time to leave.
                self._end(reason, final=False)
        except (OSError, zmq.ZMQError) as error:
            reason = f"the engine could not be started: {error}"
            self._end(reason, final=False)
        return reason

    @asynccontextmanager
    async def _launched(self) -> AsyncIterator[Child]:
        with ExitStack() as stack:
            temporary = tempfile.TemporaryDirectory(prefix="headlight-", dir=_short_parent())
            self._directory = Path(stack.enter_context(temporary))
            channel = EngineChannel(self._directory, self._receive)
            stack.callback(channel.close)
            arguments = (str(self._directory), msgspec.json.encode(self._config))
            async with launch("the engine", "service.engine.process", *arguments) as process:
                try:
                    yield process
                finally:
                    channel.mute()
                    channel.send(Shutdown())
                    await process.leave(self._grace_seconds)

    def _receive(self, message: FromEngine) -> None:
        match message:
            case Report(patience=patience):
                self._reports += 1
                asked = UNSEEN * self._timeout_seconds if patience is None else patience
                self._patience = max(self._timeout_seconds, asked)
            case Ready():
                self._ever_loaded = True
                self._loaded.set()
                health = EngineHealth("ready", "")
                self._tell(EngineStatus(health, self._restarts, directory=str(self._directory), ready=message))
            case Failed(message=line):
                self._failure.set_result(line)

    async def _death(self, process: Child) -> str:
        """Wait for the engine's end, whichever way it comes; one line that says which it was."""
        # In the order of what says most, should two of them be known at the same moment.
        ways = [self._failure, asyncio.create_task(self._hang(process)), asyncio.create_task(process.exited())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            return next(way.result() for way in ways if way.done())
        finally:
            for way in ways:
                way.cancel()

    async def _hang(self, process: Child) -> str:
        """Wait until a loaded engine has reported nothing for too long, and kill it."""
        await self._loaded.wait()
        await silence(lambda: self._reports, lambda: self._patience)
        process.kill()
        return f"the engine hung: it reported nothing for {self._patience:g} seconds"

    def _end(self, reason: str, *, final: bool) -> None:
        """Nothing is told after what was final."""
        if not self._ended:
            self._ended = final
            self._tell(EngineStatus(EngineHealth("dead", reason), self._restarts, final))


def _short_parent() -> str:
    """Where to make the private directory: a unix socket's path is limited to about 100 bytes."""
    parent = tempfile.gettempdir()
    return parent if len(os.fsencode(parent)) <= zmq.IPC_PATH_MAX_LEN - len("/headlight-12345678/engine") else "/tmp"
