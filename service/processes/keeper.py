"""The life of a process: it is started, watched, and started again when it dies or hangs.

What the process does is known to the class of its kind, and not here; nor is what becomes of the others.
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
    """Owns a process; nothing of it outlives the keeping, or the process that the keeper is in."""

    def __init__(self, name: str, timeout_seconds: float, restart_policy: RestartPolicy) -> None:
        """A process that has served and gives no sign of life for `timeout_seconds` counts as hung."""
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._patience = timeout_seconds
        """Seconds that it may be silent now."""
        self._history = Restarts(restart_policy)
        self._restarts = 0
        self._process: Child | None = None
        self._signs = 0
        self._ever_served = False
        self._serves: asyncio.Event
        self._failure: asyncio.Future[str]
        self._leaving = asyncio.Event()
        """Set for a process that is not to be started again."""

    @abstractmethod
    def _launched(self) -> AbstractAsyncContextManager[Child]:
        """The process, which is gone when this is left. Raises OSError if it cannot be started."""

    def _told(self, reason: str) -> str:
        """How a life ended; for kinds that pass it on at once, since the process may take its time to leave."""
        return reason

    def _ways(self, process: Child) -> list[Coroutine[Any, Any, str]]:
        """How a life may end beside failing and hanging, in the order of what says most."""
        return [process.exited()]

    async def _keep(self) -> str:
        """Life after life, until it is to leave or no use; one line on how the last one ended."""
        reason = f"{self._name} was to leave before it was there"
        while not self._leaving.is_set():
            reason = await self._live()
            if self._leaving.is_set():
                break
            # What kept it from serving the first time will most likely not go away.
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
        """One life, from its launch until nothing of it remains; one line on how it ended."""
        self._serves = asyncio.Event()
        self._failure = asyncio.get_running_loop().create_future()
        self._patience = self._timeout_seconds
        try:
            async with self._launched() as self._process:
                try:
                    return self._told(await self._death(self._process))
                finally:
                    self._process = None
        except OSError as error:
            return self._told(f"{self._name} could not be started: {error}")

    def _served(self) -> None:
        """It takes requests from now on."""
        self._ever_served = True
        self._serves.set()

    async def _death(self, process: Child) -> str:
        """Wait for its end, whichever way it comes; one line that says which it was."""
        ways = [self._failure, *map(asyncio.create_task, (self._hang(process), *self._ways(process)))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            # In the order of what says most, should two of them be known at the same moment.
            return next(way.result() for way in ways if way.done())
        finally:
            for way in ways:
                way.cancel()

    async def _hang(self, process: Child) -> str:
        """Wait until a process that served has given no sign of life for too long, and kill it."""
        await self._serves.wait()
        await silence(lambda: self._signs, lambda: self._patience)
        process.kill()
        return f"{self._name} hung: it gave no sign of life for {self._patience:g} seconds"
