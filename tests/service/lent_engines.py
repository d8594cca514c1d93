"""Engines that outlive the commands and programs that use them: each start costs seconds, and most tests end none."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any

import msgspec

from service.engine.status import EngineHealth, EngineStatus
from service.processes.engine_config import EngineConfig
from service.processes.engine_keeper import EngineKeeper


class Lender:
    """Keeps an engine for each configuration that was asked for, on a loop of its own, until `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._keepers: list[EngineKeeper] = []
        self._lent: dict[bytes, Future[EngineStatus]] = {}

    def lend(self, config: EngineConfig) -> Future[EngineStatus]:
        """The status of an engine that is ready, or will never be."""
        key = msgspec.json.encode(config)
        if key not in self._lent:
            settled = self._lent[key] = Future()

            def tell(status: EngineStatus) -> None:
                if not settled.done() and (status.ready or status.final):
                    settled.set_result(status)

            self._keepers.append(EngineKeeper(config, tell))
            asyncio.run_coroutine_threadsafe(self._keepers[-1].start(), self._loop).result()
        return self._lent[key]

    def keeper(self, config: EngineConfig, tell: Callable[[EngineStatus], None], **_: Any) -> "Borrower":
        """What stands in place of an `EngineKeeper`."""
        return Borrower(self, config, tell)

    def close(self) -> None:
        for keeper in self._keepers:
            asyncio.run_coroutine_threadsafe(keeper.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Borrower:
    """Tells of a lent engine as the keeper of an engine of one's own would, and gives it back."""

    def __init__(self, lender: Lender, config: EngineConfig, tell: Callable[[EngineStatus], None]) -> None:
        self._lender, self._config, self._tell = lender, config, tell

    async def start(self) -> None:
        self._tell(await asyncio.wrap_future(self._lender.lend(self._config)))

    async def stop(self) -> None:
        self._tell(EngineStatus(EngineHealth("dead", "the engine was stopped"), 0, final=True))
