"""Errors in OpenAI's form, {"error": {"message", "type", "param", "code"}}, for every kind of failure.

The routes of Anthropic's API answer with the same error in Anthropic's form. A message says what the client can do
about it. The text of an unexpected exception goes to the log alone.
"""

import re
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from service.api.schemas.answers import ErrorBody, ErrorDetail
from service.api.schemas.message_answers import MessageError, MessageErrorDetail
from service.api.schemas.types import integral
from service.engine.messages import Refusal
from service.engine.status import EngineDead, EngineLost
from service.generation import GenerationError, GenerationRefused
from service.observability.record import record_of

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in (
        (400, "The request is not valid, or asks for what this server doesn't do."),
        (401, "The server wants an API key, and the request has none of its keys."),
        (404, "The model is not served here."),
        (413, "The body is too large."),
        (415, "The body is not JSON."),
        (429, "The queue is full; Retry-After says when to come again."),
        (503, "The server is loading, shutting down, or broken."),
    )
}
"""Refusals of a route, for the API's documentation."""

RETRY_SECONDS = 10
"""Wait that clients are told while there is no engine; a large model takes longer to load."""

_PROBLEMS = {
    "bool_type": "should be true or false",
    "extra_forbidden": "is not known here",
    "dict_type": "should be a JSON object",
    "finite_number": "should be a finite number",
    "float_type": "should be a number",
    "greater_than": "should be more than {gt}",
    "greater_than_equal": "should be at least {ge}",
    "int_parsing_size": "is too large an integer",
    "int_type": "should be an integer",
    "less_than": "should be less than {lt}",
    "less_than_equal": "should be at most {le}",
    "list_type": "should be a list",
    "literal_error": "should be {expected}",
    "missing": "is required",
    "model_attributes_type": "should be a JSON object",
    "model_type": "should be a JSON object",
    "string_too_long": "should have at most {max_length} characters",
    "string_too_short": "should not be empty",
    "string_type": "should be a string",
    "too_long": "should have at most {max_length} entries",
    "too_short": "should not be empty",
}
"""The words for each kind of fault that pydantic finds, by its name for it; {} stands for a value of its context.

No schema wants more than one character or entry, so what is too short is empty.
"""

_OWN_PROBLEMS = frozenset({"field", "many", "nested", "shape", "too_many_fields", "unsupported"})
"""Kinds of faults that the schemas find; they bring their words."""

_MESSAGES_PATH = "/v1/messages"
"""The path of Anthropic's API."""

_MESSAGE_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
_MESSAGES = {404: "There is no such route.", 405: "This route doesn't take this method."}


class ApiError(HTTPException):
    """A refusal with its HTTP status and the four fields of an OpenAI error; `retry_after` is in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        if close:
            headers["connection"] = "close"
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.body = ErrorBody(
            error=ErrorDetail(message=message, type=_TYPES.get(status, "invalid_request_error"), param=param, code=code)
        )


def refusal(param: str, problem: str, code: str | None = None) -> ApiError:
    """The error for a field that has a problem, told as `field: problem.`"""
    return ApiError(400, f"{param}: {problem}.", param=param, code=code)


def describe(error: Exception) -> ApiError:
    """The error that a client sees for an exception."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return _explain(error.errors())
        case HTTPException():
            return ApiError(error.status_code, _MESSAGES.get(error.status_code, "The request was refused."))
        case GenerationRefused(refusal=Refusal(code="invalid_grammar", reason=reason, field=field)):
            return ApiError(400, f"{field}: {reason}.", param=field, code="invalid_grammar")
        case GenerationRefused(refusal=Refusal(code="nothing_to_draw", reason=reason)):
            return ApiError(400, f"{reason}.", code="nothing_to_draw")
        case GenerationRefused(refusal=refusal):
            status = 503 if refusal.code == "deadline_exceeded" else 429
            wait = max(1, ceil(refusal.retry_after))
            return ApiError(status, f"Try again later: {refusal.reason}.", code=refusal.code, retry_after=wait)
        case EngineLost():
            return ApiError(
                503, f"The request was lost: {error}.", code="engine_unavailable", retry_after=RETRY_SECONDS
            )
        case EngineDead():
            return ApiError(503, "The engine is not running.", code="engine_unavailable", retry_after=RETRY_SECONDS)
        case GenerationError():
            return ApiError(500, f"The engine failed: {error}", code="engine_error")
        case _:
            return ApiError(500, "Internal error.", code="internal_error")


def explain(error: ValidationError) -> ApiError:
    """The refusal of a body that does not fit its schema."""
    details = error.errors(include_url=False, include_input=False)
    return _explain([{**detail, "loc": ("body", *detail["loc"])} for detail in details])


def install(app: FastAPI) -> None:
    """Make every error of `app` leave in this form; the server also logs unexpected ones."""
    for kind in (HTTPException, RequestValidationError, EngineDead, GenerationError, GenerationRefused, Exception):
        app.add_exception_handler(kind, _respond)


async def _respond(request: Request, error: Exception) -> Response:
    return respond(request.scope, error)


def respond(scope: Scope, error: Exception) -> Response:
    """The response to a request that ended with `error`."""
    described = describe(error)
    record = record_of(scope)
    record.error = described.body.error.code
    # Set here too, because an unexpected error is answered outside of all middleware.
    headers = {"x-request-id": record.client_id or record.id, **(described.headers or {})}
    if isinstance(error, HTTPException) and error.headers:
        headers |= error.headers
    body = message_error(described) if f"{scope['path']}/".startswith(f"{_MESSAGES_PATH}/") else described.body
    return JSONResponse(body.model_dump(), described.status_code, headers)


def message_error(error: ApiError) -> MessageError:
    """The error in Anthropic's form."""
    kind = _MESSAGE_TYPES.get(error.status_code, "invalid_request_error")
    return MessageError(type="error", error=MessageErrorDetail(type=kind, message=error.body.error.message))


def renamed(error: ApiError, rename: Callable[[str], str]) -> ApiError:
    """The same refusal with the field that it is about under another name."""
    detail = error.body.error
    if detail.param is None or (name := rename(detail.param)) == detail.param:
        return error
    message = re.sub(rf"\b{re.escape(detail.param)}\b", lambda _: name, detail.message)
    return ApiError(error.status_code, message, param=name, code=detail.code)


def _explain(errors: Sequence[Any]) -> ApiError:
    """An error for the most telling of pydantic's: an unsupported field comes before its consequences."""
    first = min(errors, key=lambda error: error["type"] != "unsupported")
    location = first["loc"][1:]
    code = None
    if first["type"] == "unsupported":
        code = "unsupported_parameter"
    if first["type"] in ("field", "unsupported"):
        location = (*location, first["ctx"]["field"])
    message = _problem(first)
    path = path_of(location)
    return ApiError(400, f"{path or 'The body'}: {message}.", param=path or None, code=code)


def _problem(error: Any) -> str:
    if error["type"] in _OWN_PROBLEMS:
        return str(error["msg"])
    words = _PROBLEMS.get(error["type"], "is not valid")
    # Pydantic has integers of more than 64 bits as floats.
    return words.format_map({name: integral(value) for name, value in error.get("ctx", {}).items()})


def path_of(location: Sequence[str | int]) -> str:
    """A location as a client would write it, as messages[0].content; the tags of unions, in <>, are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<"):
            path += f".{part}" if path else part
    return path[:128].encode("ascii", "backslashreplace").decode()
