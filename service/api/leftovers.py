"""Leftovers of a body that a client still sends after its answer: read and thrown away, within bounds.

Closing a connection with unread bytes resets it, and the client never sees why it was refused.
"""

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_BYTES = 64 * 2**20
LINGER_SECONDS = 5.0

_SMALL = 64 * 1024
"""Bytes up to which an announced body is read to its end in order to keep the connection."""


class Leftovers:
    """Middleware that ends an answer only when its request's body has come, or more than the bounds allow.

    The client gets the whole answer before that; only its end waits. A connection is closed afterwards if the body may
    be long, or is held back until the server says 100 Continue.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        announced = int(headers.get("content-length", "0"))
        chunked = "transfer-encoding" in headers
        keep = announced <= _SMALL and not chunked and "expect" not in headers
        unread, held = chunked or announced > 0, False

        async def watched() -> Message:
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def answered(message: Message) -> None:
            nonlocal held
            if unread and message["type"] == "http.response.start" and not keep:
                MutableHeaders(scope=message)["connection"] = "close"
            elif unread and message["type"] == "http.response.body" and not message.get("more_body", False):
                held = True
                message = {**message, "more_body": True}
            await send(message)

        await self._app(scope, watched, answered)
        if held:
            await _discard(receive)
            await send({"type": "http.response.body"})


async def _discard(receive: Receive) -> None:
    """Receive until the body ends, the client leaves, or a bound is reached."""
    received, more = 0, True
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while more and received < LINGER_BYTES:
                message = await receive()
                received += len(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        pass
