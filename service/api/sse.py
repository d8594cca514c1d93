"""Server-sent events, and noticing that a client has left. Knows nothing of the events' content."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api.errors import ApiError, describe
from service.generation import GenerationError

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"

T = TypeVar("T")


class ClientLeft(Exception):
    """The client closed its connection before the answer was complete."""


def event(data: str, name: str | None = None) -> bytes:
    """One event of JSON text, which must hold no line break; some APIs give their events names."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {data}\n\n".encode()


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end; if the client leaves first, cancel it and raise ClientLeft.

    The request's body must have been read. Starlette watches for this only in its own streaming responses.
    """
    task = asyncio.create_task(work)
    departure = asyncio.create_task(_departure(receive))
    try:
        await asyncio.wait((task, departure), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        task.cancel()
        departure.cancel()
        await asyncio.gather(task, departure, return_exceptions=True)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Sends events as they are made, each as soon as the client has taken the one before.

    The headers wait for the first event, so that a failure before it has a status of its own; a later failure is sent
    as an event. The generator is closed before the response ends, whether or not the client stayed.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], failure: Callable[[ApiError], bytes]) -> None:
        """`failure` gives the event that tells of an error."""
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events
        self._failure = failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send_all(send))
        except ClientLeft:
            log.debug("a client left its stream")

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            try:
                async for data in events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except Exception as error:
                log.error("a stream broke off: %r", error, exc_info=not isinstance(error, GenerationError))
                await send({"type": "http.response.body", "body": self._failure(describe(error)), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
