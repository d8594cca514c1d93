"""The HTTP server of one process: uvicorn, with bounded connections and a shutdown that lets requests finish."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from service.api.admission import Admission
from service.api.connections import Connection, Limits
from service.engine.interface import EngineClient
from service.settings import Settings

_TICKS = 10
"""Turns of uvicorn's main loop in a second."""


class Server(uvicorn.Server):
    """A server that drains: new completions are refused, and those in flight have `drain_seconds` to finish.

    It goes on listening meanwhile, so that /ready can say so.
    """

    def __init__(
        self, app: FastAPI, settings: Settings, admission: Admission, client: EngineClient, alive: Callable[[], None]
    ) -> None:
        """`alive` is called when the server begins to serve, and every second from then on."""
        limits = Limits(settings.request_timeout, settings.write_timeout, settings.max_connections)
        super().__init__(
            uvicorn.Config(
                app,
                http=type("LimitedConnection", (Connection,), {"limits": limits}),
                ws="none",
                log_config=None,
                log_level="debug" if settings.log_level == "debug" else "warning",
                access_log=settings.log_level == "debug",
                server_header=False,
                # Longer than proxies keep idle connections, so that this side never closes one just as a proxy uses it.
                timeout_keep_alive=75,
                timeout_graceful_shutdown=1,
            )
        )
        self._admission = admission
        self._drain_seconds = settings.drain_seconds
        self._deadline: float | None = None
        self._client = client
        self._alive = alive

    def drain(self) -> None:
        """Begin to drain."""
        self._admission.drain()
        self._deadline = time.monotonic() + self._drain_seconds

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals: the supervisor handles them."""
        yield

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS == 0:
            self._alive()
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.check(now)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            # Clients that still wait for a completion are told that it failed, rather than cut off.
            self._client.stop()
            self.should_exit = True
        elif self._deadline is not None and not self.server_state.tasks:
            self.should_exit = True
        return await super().on_tick(counter)
