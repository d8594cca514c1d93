"""The supervisor, the server's first process: it owns an engine and one or more API processes, and serves nobody
itself.

A process that dies is started again, while the others go on. When the supervisor ends, however it does, none of the
others remain.
"""

import asyncio
import logging
import signal
import socket
import tempfile
import time
from pathlib import Path

from model.checkpoint.free_memory import return_free_memory
from model.checkpoint.source import Source
from model.limits import ModelLimits
from service.api.keys import ApiKeys
from service.engine.status import STARTING, EngineDead, EngineStatus
from service.model_files import locate, served_names
from service.observability.logs import configure
from service.processes.api_keeper import ApiDead, ApiKeeper
from service.processes.engine_config import engine_config
from service.processes.engine_keeper import EngineKeeper
from service.processes.orders import Setup
from service.settings import Settings

_BANNER = """
Headlight serves {model}
  API        {url}/v1
  API docs   {url}/docs

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\{authorization}
    -d '{{"messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
"""
_AUTHORIZATION = """
    -H 'Authorization: Bearer YOUR_API_KEY' \\"""

log = logging.getLogger(__name__)


def run_server(settings: Settings, listener: socket.socket) -> None:
    """Serve on a listening socket until a signal.

    Raises CheckpointError and SettingsError for a model or settings that cannot be served, EngineDead if the model
    doesn't load, and ApiDead if an API process does not stay alive.
    """
    configure(settings.log_format, settings.log_level, "supervisor")
    # Checks also that the keys can be read; each API process reads them for itself.
    with_key = ApiKeys(settings).required
    source = locate(settings)
    return_free_memory()
    with tempfile.TemporaryDirectory(prefix="headlight-", ignore_cleanup_errors=True) as folder:
        asyncio.run(Supervisor(settings, source, listener, Path(folder), with_key).run())


class Supervisor:
    """Keeps an engine and its API processes until the first signal, and then lets requests in flight finish.

    A second signal ends it at once.
    """

    def __init__(
        self, settings: Settings, source: Source, listener: socket.socket, folder: Path, with_key: bool
    ) -> None:
        """`folder` is an empty folder for the files that the API processes share.

        `with_key` says whether clients need an API key.
        """
        self._settings = settings
        self._banner = _banner(served_names(settings, source)[0], listener, with_key)
        self._ever_ready = False
        self._draining = False
        self._failure: Exception | None = None
        self._engine = EngineKeeper(
            engine_config(settings, source), self._follow, timeout_seconds=settings.engine_timeout_seconds
        )
        started = int(time.time())
        self._apis = [
            ApiKeeper(
                Setup(
                    settings=settings.revealed(),
                    model_name=source.name,
                    model_path=str(source.path),
                    model_sampling=source.sampling,
                    listener=listener.fileno(),
                    folder=str(folder),
                    slot=slot,
                    started=started,
                ),
                EngineStatus(STARTING, 0),
                drain_seconds=settings.drain_seconds,
                timeout_seconds=settings.engine_timeout_seconds,
            )
            for slot in range(settings.api_processes)
        ]

    async def run(self) -> None:
        """Run until a signal, or until serving is impossible. Raises EngineDead or ApiDead in that case."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
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
            if self._settings.log_format == "text":
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


def _banner(model: str, listener: socket.socket, with_key: bool) -> str:
    host, port = listener.getsockname()[:2]
    # An address that stands for every interface is shown as the loopback address, which a browser can open.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    # A URL writes the % of an interface's name, as in fe80::1%eth0, as %25.
    url = f"http://[{host.replace('%', '%25')}]:{port}" if ":" in host else f"http://{host}:{port}"
    return _BANNER.format(model=model, url=url, authorization=_AUTHORIZATION if with_key else "")
