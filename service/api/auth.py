"""Refuses requests without an API key, and tells apart the clients of different keys.

Every path is guarded except those listed here, and the page's if there is one, so that a new route is guarded too.
Knows nothing of the keys' origin.
"""

import hashlib
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import ApiError, respond
from service.api.keys import ApiKeys

OPEN_PATHS = frozenset({"/health", "/ready", "/ping", "/metrics"})
"""Paths that probes and Prometheus ask, which have no keys."""


class RequireKey:
    """Middleware that answers 401 to a request for a guarded path unless it comes with one of the keys.

    `is_open` tells further paths that are not guarded.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, is_open: Callable[[str], bool]) -> None:
        self._app = app
        self._keys = keys
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._lets_in(scope):
            if scope["type"] == "http" and self._keys.several:
                scope.setdefault("state", {})["caller"] = _caller(_key(scope))
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "This server wants one of its API keys, as in the header 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'.",
            code="invalid_api_key",
        )
        await respond(scope, error)(scope, receive, send)

    def _lets_in(self, scope: Scope) -> bool:
        return scope["path"] in OPEN_PATHS or self._is_open(scope["path"]) or self._keys.accept(_key(scope))


def no_path(path: str) -> bool:
    """Opens nothing."""
    return False


def caller_of(scope: Scope) -> str:
    """A label for the client's API key, the same in every process and replica; empty unless there are several keys.

    The label is a hash, but not the one that keys are compared by.
    """
    caller: str = scope.get("state", {}).get("caller", "")
    return caller


def _caller(key: bytes) -> str:
    return hashlib.sha256(b"caller:" + key).hexdigest()


def _key(scope: Scope) -> bytes:
    """The request's bearer token, or else its X-Api-Key; empty if it has neither, which is never a key."""
    headers = Headers(scope=scope)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = token if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return key.strip().encode("latin-1")
