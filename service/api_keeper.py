"""The life of one API process: it is started, watched, and started again when it dies or hangs.

What an API process does is not known here, nor what becomes of the others.
"""

import asyncio
import logging
from asyncio.subprocess import PIPE
from contextlib import suppress

import msgspec

from service.engine.child import Child, launch, silence
from service.engine.messages import Failed
from service.engine.restarts import DEFAULT_RESTARTS, RestartPolicy, Restarts
from service.engine.status import EngineStatus
from service.orders import Alive, Drain, FromApi, Setup, line

TEARDOWN_SECONDS = 10.0
"""What an API process has beyond its time to drain before it is killed."""

logger = logging.getLogger(__name__)


class ApiDead(Exception):
    """An API process does not start, or dies again and again; one line that says why."""


class ApiKeeper:
    """Owns an API process; nothing of it outlives `run`, or the process that the keeper is in."""

    def __init__(
        self,
        setup: Setup,
        status: EngineStatus,
        *,
        drain_seconds: float,
        timeout_seconds: float,
        restart_policy: RestartPolicy = DEFAULT_RESTARTS,
    ) -> None:
        """A process that has served and gives no sign of life for `timeout_seconds` counts as hung."""
        self._setup = setup
        self._status = status
        self._drain_seconds = drain_seconds
        self._timeout_seconds = timeout_seconds
        self._history = Restarts(restart_policy)
        self._name = f"API process {setup.slot}"
        self._process: Child | None = None
        self._signs = 0
        self._serves: asyncio.Event
        self._failure: asyncio.Future[str]
        self._ever_served = False
        self._leaving = asyncio.Event()

    async def run(self) -> None:
        """Life after life, until one ends that was to drain. Raises ApiDead if it is no use."""
        while not self._leaving.is_set():
            reason = await self._live()
            if self._leaving.is_set():
                return
            # What kept it from serving the first time will most likely not go away.
            delay = self._history.after_death(asyncio.get_running_loop().time()) if self._ever_served else None
            if delay is None:
                raise ApiDead(reason)
            logger.error("%s; it is started again in %.1f seconds", reason, delay)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), delay)

    def follow(self, status: EngineStatus) -> None:
        """Pass on what is told of the engine."""
        self._status = status
        if self._process is not None:
            self._process.tell(line(status))

    def drain(self) -> None:
        """Let it finish what it has. One that does not serve yet has nothing."""
        self._leaving.set()
        if self._process is None:
            return
        if self._serves.is_set():
            self._process.tell(line(Drain()))
        else:
            self._process.kill()

    def kill(self) -> None:
        """End it without asking."""
        self._leaving.set()
        if self._process is not None:
            self._process.kill()

    async def _live(self) -> str:
        """One life, from its launch until nothing of it remains; one line on how it ended."""
        self._serves = asyncio.Event()
        self._failure = asyncio.get_running_loop().create_future()
        try:
            async with launch(self._name, "service.api_process", files=[self._setup.listener], output=PIPE) as process:
                process.tell(line(self._setup))
                process.tell(line(self._status))
                self._process = process
                if self._leaving.is_set():
                    return "it was to leave before it was there"
                try:
                    return await self._death(process)
                finally:
                    self._process = None
        except OSError as error:
            return f"{self._name} could not be started: {error}"

    async def _death(self, process: Child) -> str:
        """Wait for its end, whichever way it comes; one line that says which it was."""
        ways = [
            self._failure,
            asyncio.create_task(self._hang(process)),
            asyncio.create_task(self._overstay(process)),
            asyncio.create_task(self._listen(process)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            return next(way.result() for way in ways if way.done())
        finally:
            for way in ways:
                way.cancel()

    async def _listen(self, process: Child) -> str:
        """Take in what it says, to the last word, and wait for its end."""
        assert process.output
        async for said in process.output:
            match msgspec.json.decode(said, type=FromApi):
                case Alive():
                    self._signs += 1
                    self._ever_served = True
                    self._serves.set()
                case Failed(message=reason):
                    self._failure.set_result(reason)
        return await process.exited()

    async def _hang(self, process: Child) -> str:
        """Wait until a process that served has given no sign of life for too long, and kill it."""
        await self._serves.wait()
        await silence(lambda: self._signs, lambda: self._timeout_seconds)
        process.kill()
        return f"{self._name} hung: it gave no sign of life for {self._timeout_seconds:g} seconds"

    async def _overstay(self, process: Child) -> str:
        """Wait until it should long have left, and kill it."""
        await self._leaving.wait()
        await asyncio.sleep(self._drain_seconds + TEARDOWN_SECONDS)
        process.kill()
        return f"{self._name} did not leave"
