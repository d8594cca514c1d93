"""The life of a process: it is started, watched, and started again when it dies or hangs.

The subclass for its kind knows what the process does. Other processes are not its concern.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from service.processes.child import Child, silence
from service.processes.restarts import RestartPolicy, Restarts

logger = logging.getLogger(__name__)


class Keeper(ABC):
    """Owns a process, which outlives neither the keeping nor the process that the keeper is in."""

    def __init__(self, name: str, timeout_seconds: float, restart_policy: RestartPolicy) -> None:
        """A process that has served and gives no sign of life for `timeout_seconds` counts as hung."""
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._silence = timeout_seconds
        """Seconds for which the process may be silent now."""
        self._history = Restarts(restart_policy)
        self._restarts = 0
        self._process: Child | None = None
        self._signs = 0
        self._ever_served = False
        self._serves: asyncio.Event
        self._failure: asyncio.Future[str]
        self._leaving = asyncio.Event()
        """Set when the process is not to be started again."""

    @abstractmethod
    def _spawned(self) -> AbstractAsyncContextManager[Child]:
        """Launch the process; leaving the context ends it. Raises OSError if it cannot be started."""

    def _told(self, reason: str) -> str:
        """Report how a life ended, and return the reason.

        Subclasses may pass it on here, before the process has left, which may take a while.
        """
        return reason

    def _ways(self, process: Child) -> list[Coroutine[Any, Any, str]]:
        """Ways in which a life may end beside failing and hanging, most informative first; each returns one line."""
        return [process.exited()]

    async def _keep(self) -> str:
        """Run life after life, until the process is to leave or restarting is no use; returns the last end."""
        reason = f"{self._name} was to leave before it was there"
        while not self._leaving.is_set():
            reason = await self._live()
            if self._leaving.is_set():
                break
            # A process that never served is not restarted, because the same cause would most likely stop it again.
            delay = self._history.after_death(asyncio.get_running_loop().time()) if self._ever_served else None
            if delay is None:
                if self._ever_served:
                    logger.error("%s; it is not started again", reason)
                break
            logger.error("%s; it is started again in %.1f seconds", reason, delay)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), delay)
            self._restarts += 1
        return reason

    async def _live(self) -> str:
        """Run one life, from its start until the process is gone; returns one line on how it ended."""
        self._serves = asyncio.Event()
        self._failure = asyncio.get_running_loop().create_future()
        self._silence = self._timeout_seconds
        try:
            async with self._spawned() as self._process:
                try:
                    return self._told(await self._death(self._process))
                finally:
                    self._process = None
        except OSError as error:
            return self._told(f"{self._name} could not be started: {error}")

    def _served(self) -> None:
        """Note that the process takes requests from now on."""
        self._ever_served = True
        self._serves.set()

    async def _death(self, process: Child) -> str:
        """Wait for the end of the process, in whichever way it comes; returns one line that says which it was."""
        ways = [self._failure, *map(asyncio.create_task, (self._hang(process), *self._ways(process)))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            # The most informative way comes first, should two of them be known at the same moment.
            return next(way.result() for way in ways if way.done())
        finally:
            for way in ways:
                way.cancel()

    async def _hang(self, process: Child) -> str:
        """Wait until a process that served has been silent for too long, and kill it; returns one line on it."""
        await self._serves.wait()
        await silence(lambda: self._signs, lambda: self._silence)
        process.kill()
        return f"{self._name} hung: it gave no sign of life for {self._silence:g} seconds"
