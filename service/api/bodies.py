"""Reading request bodies: their size while they stream in, their content type, and strictly parsed JSON.

Knows nothing of what a body means; FastAPI validates what comes out of here against a schema.
"""

import json
from collections.abc import Callable, Coroutine
from email.message import Message as MimeHeaders
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import ApiError


class BodyLimit:
    """Middleware that refuses a body of more than `limit` bytes: as announced, or counted as it arrives."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        received = 0

        async def counted() -> Message:
            nonlocal received
            if int(announced) > self._limit:
                raise self._too_large()
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The body is larger than {self._limit} bytes.", close=True)


class JsonRoute(APIRoute):
    """A route whose body is JSON in the strict sense; to be given to a router as its `route_class`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            if request.method == "POST":
                _check_encodings(request.headers)
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


def _check_encodings(headers: Headers) -> None:
    """Refuse with 415 what says that it is not JSON, or that it is written or packed in a way not read here."""
    kind = MimeHeaders()
    kind["content-type"] = headers.get("content-type", "")
    if kind.get_content_type() != "application/json":
        raise ApiError(415, "The content type must be application/json.")
    if kind.get_content_charset("utf-8") not in ("utf-8", "utf8", "us-ascii"):
        raise ApiError(415, "The body must be in UTF-8.")
    for name in ("content-encoding", "transfer-encoding"):
        codings = {coding.strip().lower() for coding in ",".join(headers.getlist(name)).split(",")}
        if codings - {"", "identity", "chunked"}:
            raise ApiError(415, f"The body must come as it is, without {name}.")


class _StrictRequest(Request):
    async def json(self) -> Any:
        return parse(await self.body())


def parse(body: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises ApiError with status 400, or 415 if it is in UTF-16 or UTF-32.

    Beyond the grammar it refuses NaN and infinities, duplicate names, NUL, and surrogates that stand alone.
    """
    if not json.detect_encoding(body).startswith("utf-8"):
        raise ApiError(415, "The body must be in UTF-8.")
    try:
        value = json.loads(
            body.decode("utf-8"), parse_float=_finite, parse_constant=_refuse_constant, object_pairs_hook=_unique
        )
        if b"\\u" in body:
            _check_text(value)
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.") from None
    except UnicodeDecodeError:
        raise ApiError(400, "The body is not UTF-8.") from None
    except json.JSONDecodeError as error:
        raise ApiError(400, f"The body is not JSON: {error.msg} at character {error.pos}.") from None
    except ValueError:
        # Python's own limit on the digits of an integer.
        raise ApiError(400, "The body has a number that is too large.") from None
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ApiError(400, "The body has a number that is too large.")
    return value


def _refuse_constant(name: str) -> None:
    raise ApiError(400, f"The body is not JSON: {name} is not a number.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ApiError(400, "The body has an object with the same name twice.")
    return value


def _check_text(value: Any) -> None:
    """Only an escape can bring in what UTF-8 and JSON's grammar keep out."""
    if isinstance(value, str):
        if "\0" in value:
            raise ApiError(400, "The body has a NUL character in a string.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ApiError(400, "The body has half of a surrogate pair in a string.") from None
    elif isinstance(value, list):
        for item in value:
            _check_text(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_text(name)
            _check_text(item)
