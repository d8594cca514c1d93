"""What a client still sends of a body when it has been answered: read and thrown away, within bounds.

To close a connection on bytes that nobody has read resets it, and the client never sees why it was refused.
"""

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_BYTES = 64 * 2**20
LINGER_SECONDS = 5.0

_SMALL = 64 * 1024
"""An announced body up to this is worth reading to its end to keep a connection."""


class Leftovers:
    """Middleware that ends an answer only when its request's body has come, or more than is worth waiting for.

    The client has the whole answer meanwhile. A connection whose body may be long, or held back until the server says
    100 Continue, is closed afterwards.
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
    """Receive until the body's end, the client's, or a bound."""
    received, more = 0, True
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while more and received < LINGER_BYTES:
                message = await receive()
                received += len(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        pass
