"""The supervisor, the server's first process: it owns an engine and one or more API processes, and serves nobody
itself.

A process that dies is started again, while the others go on. When the supervisor ends, however it does, none of the
others remain.
"""

import asyncio
import logging
import signal
import time
from pathlib import Path

from model.limits import ModelLimits
from service.engine.status import STARTING, EngineDead, EngineStatus
from service.processes.api_keeper import ApiDead, ApiKeeper
from service.processes.engine_keeper import EngineKeeper
from service.processes.orders import Setup
from service.processes.supervisor_config import STOPS, SupervisorConfig

log = logging.getLogger(__name__)


class Supervisor:
    """Keeps an engine and its API processes until the first signal, and then lets requests in flight finish.

    A second signal ends it at once.
    """

    def __init__(self, config: SupervisorConfig, folder: Path) -> None:
        """`folder` is an empty folder for the files that the API processes share."""
        self._banner = config.banner if config.engine.log_format == "text" else None
        self._ever_ready = False
        self._draining = False
        self._failure: Exception | None = None
        self._engine = EngineKeeper(config.engine, self._follow, timeout_seconds=config.timeout_seconds)
        started = int(time.time())
        self._apis = [
            ApiKeeper(
                Setup(config.api, str(folder), slot, started),
                EngineStatus(STARTING, 0),
                drain_seconds=config.drain_seconds,
                timeout_seconds=config.timeout_seconds,
            )
            for slot in range(config.api_processes)
        ]

    async def run(self) -> None:
        """Run until a signal, or until serving is impossible. Raises EngineDead or ApiDead in that case."""
        loop = asyncio.get_running_loop()
        for number in STOPS:
            loop.add_signal_handler(number, self._interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        await self._engine.start()
        try:
            await asyncio.gather(*map(self._keep, self._apis))
        finally:
            await self._engine.stop()
        if self._failure is not None:
            raise self._failure

    async def _keep(self, api: ApiKeeper) -> None:
        try:
            await api.run()
        except ApiDead as error:
            self._fail(error)

    def _follow(self, status: EngineStatus) -> None:
        for api in self._apis:
            api.follow(status)
        if status.ready is not None and not self._ever_ready:
            self._ever_ready = True
            _tell_ready(status.ready.limits)
            if self._banner is not None:
                print(self._banner, flush=True)
        elif status.final and not self._ever_ready:
            self._fail(EngineDead(status.health.reason))

    def _interrupt(self) -> None:
        if self._draining:
            for api in self._apis:
                api.kill()
        self._drain()

    def _fail(self, error: Exception) -> None:
        """End with an error, once the requests in flight have finished."""
        if not self._draining:
            self._failure = error
        self._drain()

    def _drain(self) -> None:
        if not self._draining:
            self._draining = True
            for api in self._apis:
                api.drain()


def _tell_ready(limits: ModelLimits) -> None:
    log.info("ready", extra={"fields": {"max_model_len": limits.capacity}})
    if limits.capacity < limits.max_context:
        log.warning(
            "the KV cache holds %d tokens, fewer than the context of %d: no request can be longer",
            limits.capacity,
            limits.max_context,
        )
