"""Bounds on a client's connection: size of headers, time to send a request or take an answer, number of connections.

uvicorn reads and writes HTTP; its own timer closes connections that are idle between requests.
"""

import time
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.errors import ApiError

MAX_HEADER_BYTES = 65_536
"""Bytes of a request's URL and headers together."""

_LINGER_SECONDS = 1.0
"""Seconds that a refused client has to read the reason: closing at once could discard the answer."""


class Limits:
    """Bounds that all connections of a process share."""

    def __init__(self, request_timeout: float, write_timeout: float, max_connections: int) -> None:
        """Timeouts are in seconds."""
        self.request_timeout = request_timeout
        self.write_timeout = write_timeout
        self.max_connections = max_connections


class Connection(HttpToolsProtocol):
    """One connection. The server calls `check` about every second."""

    limits: Limits

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._header_bytes = 0
        """Bytes of the URL and headers of the request that is read."""
        self._began = False
        self._asked: float | None = time.monotonic()
        """Moment since which a request is awaited; None between requests, and while one is answered."""
        self._closes: float | None = None
        self._stuck = time.monotonic()
        self._unsent = 0
        if len(self.connections) > self.limits.max_connections:
            self._turn_away(ApiError(503, "Too many connections; try again later.", code="too_many_connections"))

    def data_received(self, data: bytes) -> None:
        if self._closes is None:
            super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._began = True
        self._asked = time.monotonic()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._asked = None

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP, or whose headers are too large; uvicorn calls this."""
        if self._answering():
            self.transport.close()
        elif self._header_bytes > MAX_HEADER_BYTES:
            most = f"{MAX_HEADER_BYTES} bytes"
            self._turn_away(
                ApiError(431, f"The request's URL and headers are more than {most}.", code="headers_too_large")
            )
        else:
            self._turn_away(ApiError(400, msg))

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stuck = time.monotonic()

    def check(self, now: float) -> None:
        """End the connection if it has exceeded a timeout; `now` is monotonic time in seconds."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent != self._unsent:
            self._unsent, self._stuck = unsent, now
        if self.flow.read_paused and self._asked is not None:
            # Our side has paused reading, so the client is not late.
            self._asked = now
        if now - self._stuck >= self.limits.write_timeout or (self._closes is not None and now >= self._closes):
            self.transport.abort()
        elif self._asked is not None and now - self._asked >= self.limits.request_timeout and self._closes is None:
            self._give_up()

    def _give_up(self) -> None:
        """End a connection whose request did not come, or only in part."""
        if self._began and not self._answering():
            self._turn_away(ApiError(408, "The request took too long to arrive.", code="request_timeout"))
        else:
            self.transport.close()

    def _answering(self) -> bool:
        """Whether an answer has begun and not ended."""
        return self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete

    def _turn_away(self, error: ApiError) -> None:
        body = error.body.model_dump_json().encode()
        reason = HTTPStatus(error.status_code).phrase
        head = f"HTTP/1.1 {error.status_code} {reason}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._closes = time.monotonic() + _LINGER_SECONDS
        if self.cycle is not None and not self.cycle.response_complete:
            # Tells the route that still reads the body that no more of it will come.
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError("the request's headers are too large")
