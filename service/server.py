"""The HTTP server: uvicorn, with a bound on headers and a shutdown that lets requests finish."""

import asyncio
import logging
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.admission import Admission
from service.app import create_app
from service.engine.client import EngineClient, EngineDead
from service.launch import prepare
from service.logs import configure
from service.settings import Settings

MAX_HEADER_BYTES = 65_536
"""Of a request's URL and headers together."""

log = logging.getLogger(__name__)

_BANNER = """
Headlight serves {model}
  API        {url}/v1
  API docs   {url}/docs

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
"""


def run_server(settings: Settings, listener: socket.socket) -> None:
    """Serve on a listening socket until a signal. Raises CheckpointError, and EngineDead if the model doesn't load."""
    configure(settings.log_format, settings.log_level, "api")
    launch = prepare(settings)
    admission = Admission(settings.max_running + settings.max_waiting)
    app = create_app(settings, launch, admission)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    banner = _BANNER.format(model=launch.model_name, url=url) if settings.log_format == "text" else ""
    server = Server(app, settings, admission, launch.client, banner)
    server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure


class BoundedHeaders(HttpToolsProtocol):
    """Answers 400 to a request whose URL and headers never seem to end; the parser alone would collect them all."""

    _header_bytes = 0

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError("the request's headers are too large")


class Server(uvicorn.Server):
    """On the first signal it drains: new completions are refused, those in flight have `drain_seconds` to finish.

    It goes on listening meanwhile, so that /ready can say so. A second signal ends it at once.
    """

    def __init__(
        self, app: FastAPI, settings: Settings, admission: Admission, client: EngineClient, banner: str
    ) -> None:
        """`banner` is printed when the engine is ready, if it says anything."""
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedHeaders,
                ws="none",
                log_config=None,
                log_level="debug" if settings.log_level == "debug" else "warning",
                access_log=settings.log_level == "debug",
                server_header=False,
                # Longer than proxies keep theirs, so that it is never this side that closes one in use.
                timeout_keep_alive=75,
                timeout_graceful_shutdown=1,
            )
        )
        self.failure: EngineDead | None = None
        """Why the engine did not start; the server ends with it."""
        self._admission = admission
        self._drain_seconds = settings.drain_seconds
        self._deadline: float | None = None
        self._client = client
        self._banner = banner
        self._loading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loading = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        try:
            await self._client.ready()
        except EngineDead as error:
            if self._deadline is None:
                self.failure = error
            self.should_exit = True
        else:
            log.info("ready")
            if self._banner:
                print(self._banner, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._deadline is None:
            self._admission.drain()
            self._deadline = time.monotonic() + self._drain_seconds
        else:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            # Whoever still waits for a completion is told that it failed, rather than cut off.
            await self._client.stop()
            self.should_exit = True
        elif self._deadline is not None and not self.server_state.tasks:
            self.should_exit = True
        return await super().on_tick(counter)
