"""Reading request bodies: their size while they stream in, their content type, strict JSON, and the route's schema.

No body keeps the event loop for more than a moment: its objects and values are counted before anything is built of
them, and a large body is read in a thread. Knows nothing of a body's meaning.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from email.message import Message as MimeHeaders
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.context import Context
from service.api.errors import ApiError, explain
from service.settings import Settings

T = TypeVar("T")

_INLINE_BYTES = 16_384
"""Larger bodies are read in a thread."""

_MOST = (("objects and lists", b"{[", 32_768), ("names", b":", 131_072), ("values", b",", 2**20))
"""Bounds on a body: the things counted, the bytes outside of strings that count them, and the limit. A chat of
thousands of messages, or a prompt of a million token ids, stays below."""


class BodyLimit:
    """Middleware that refuses a body of more than `limit` bytes, as announced or as counted on arrival."""

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
    """A route whose body is strict JSON; give it to a router as its `route_class`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        body = self.body_field.field_info.annotation if self.body_field else None
        schema: TypeAdapter[Any] = TypeAdapter(body or Any)

        async def handle_strictly(request: Request) -> Response:
            if request.method == "POST":
                _check_encodings(request.headers)
            return await handle(_StrictRequest(request, schema))

        return handle_strictly


class EngineRoute(JsonRoute):
    """A JSON route that needs the engine: while that takes no requests, they are refused before their body is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_if_ready(request: Request) -> Response:
            context: Context = request.app.state.context
            context.check_ready()
            return await handle(request)

        return handle_if_ready


def _check_encodings(headers: Headers) -> None:
    """Refuse with 415 a body of another content type than JSON, in another charset than UTF-8, or with an encoding."""
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
    """A request whose `json` is the validated body itself, so that FastAPI does not parse or validate it."""

    def __init__(self, request: Request, schema: TypeAdapter[Any]) -> None:
        super().__init__(request.scope, request.receive)
        self._schema = schema

    async def json(self) -> Any:
        body = await self.body()
        context: Context = self.app.state.context
        if len(body) <= _INLINE_BYTES:
            return read_body(body, self._schema, context.settings)
        # One large body at a time: several threads together would keep the interpreter from the event loop.
        async with context.large_bodies:
            return await asyncio.to_thread(read_body, body, self._schema, context.settings)


def read_body(body: bytes, schema: TypeAdapter[T], settings: Settings) -> T:
    """The object of a schema that a JSON text holds. Raises ApiError."""
    return validated(parse(body), schema, settings)


def validated(value: Any, schema: TypeAdapter[T], settings: Settings) -> T:
    """The object of a schema that a value of JSON is. Raises ApiError."""
    try:
        return schema.validate_python(value, from_attributes=True, context=settings)
    except ValidationError as error:
        raise explain(error) from None


def parse(body: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises ApiError with status 400, or 415 if it is in UTF-16 or UTF-32.

    Beyond the grammar it refuses NaN and infinities, duplicate names, NUL, lone surrogates, and more objects, names or
    values than `_MOST` allows.
    """
    if not json.detect_encoding(body).startswith("utf-8"):
        raise ApiError(415, "The body must be in UTF-8.")
    _check_amount(body)
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
        # Python limits the digits of an integer.
        raise ApiError(400, "The body has a number that is too large.") from None
    return value


def _check_amount(body: bytes) -> None:
    """Refuse a body with too many things before it takes long to build them."""
    if all(_count(body, marks) < most for _, marks, most in _MOST):
        return
    # Once the escapes are gone, every other piece between quotes lies outside of strings.
    bones = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    for things, marks, most in _MOST:
        if _count(bones, marks) >= most:
            raise ApiError(400, f"The body has more than {most} {things}.")


def _count(body: bytes, marks: bytes) -> int:
    return sum(body.count(mark) for mark in marks)


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
    """Refuse NUL and lone surrogates: UTF-8 and JSON's grammar keep them out, but an escape can bring them in."""
    if isinstance(value, str):
        if "\0" in value:
            raise ApiError(400, "The body has a NUL character in a string.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ApiError(400, "The body has half of a surrogate pair in a string.") from None
    elif isinstance(value, list):
        for item in value:
            # Skips numbers, because there may be a million.
            if type(item) is not int:
                _check_text(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_text(name)
            _check_text(item)
