"""Keeps one API process: passes the engine's status on, watches for signs of life, makes it drain."""

import asyncio
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from service.engine.messages import Failed
from service.engine.status import EngineStatus
from service.processes.child import Child, spawn
from service.processes.keeper import Keeper
from service.processes.orders import Alive, Drain, FromApi, Setup, line
from service.processes.restarts import DEFAULT_RESTARTS, RestartPolicy

TEARDOWN_SECONDS = 10.0
"""Seconds that an API process has after its time to drain, before it is killed."""


class ApiDead(Exception):
    """An API process does not start, or dies again and again; the message is one line that says why."""


class ApiKeeper(Keeper):
    """Owns an API process, which outlives neither `run` nor the process that the keeper is in."""

    def __init__(
        self,
        setup: Setup,
        status: EngineStatus,
        *,
        drain_seconds: float,
        timeout_seconds: float,
        restart_policy: RestartPolicy = DEFAULT_RESTARTS,
    ) -> None:
        """`timeout_seconds` is as in `Keeper`; `drain_seconds` is the time for requests in flight once it drains."""
        super().__init__(f"API process {setup.slot}", timeout_seconds, restart_policy)
        self._setup = setup
        self._status = status
        self._drain_seconds = drain_seconds

    async def run(self) -> None:
        """Run the process, again after each death, until it has drained. Raises ApiDead if it cannot be kept alive."""
        reason = await self._keep()
        if not self._leaving.is_set():
            raise ApiDead(reason)

    def follow(self, status: EngineStatus) -> None:
        """Pass the engine's status on to the process."""
        self._status = status
        if self._process is not None:
            self._process.tell(line(status))

    def drain(self) -> None:
        """Let the process finish its requests and leave. A process that does not serve yet has none, and is killed."""
        self._leaving.set()
        if self._process is None:
            return
        if self._serves.is_set():
            self._process.tell(line(Drain()))
        else:
            self._process.kill()

    def kill(self) -> None:
        """End the process at once."""
        self._leaving.set()
        if self._process is not None:
            self._process.kill()

    @asynccontextmanager
    async def _spawned(self) -> AsyncIterator[Child]:
        module = "service.processes.api_process"
        async with spawn(self._name, module, files=[self._setup.config.listener], output=PIPE) as process:
            process.tell(line(self._setup))
            process.tell(line(self._status))
            if self._leaving.is_set():
                process.kill()
            yield process

    def _ways(self, process: Child) -> list[Coroutine[Any, Any, str]]:
        return [self._overstay(process), self._listen(process)]

    async def _listen(self, process: Child) -> str:
        """Take in all messages of the process, to the last, and wait for its end; returns how it ended."""
        assert process.output
        async for said in process.output:
            match msgspec.json.decode(said, type=FromApi):
                case Alive():
                    self._signs += 1
                    self._served()
                case Failed(message=reason):
                    self._failure.set_result(reason)
        return await process.exited()

    async def _overstay(self, process: Child) -> str:
        """Wait until a process that drains has overstayed its time, and kill it; returns how it ended."""
        await self._leaving.wait()
        await asyncio.sleep(self._drain_seconds + TEARDOWN_SECONDS)
        process.kill()
        return f"{self._name} did not leave"
