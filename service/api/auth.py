"""The refusal of every request that brings no API key. Knows nothing of where the keys come from.

Guards by exclusion, so that a new route is guarded unless it is named here.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import ApiError, respond
from service.keys import ApiKeys

OPEN_PATHS = frozenset({"/health", "/ready", "/ping", "/metrics"})
"""For probes and Prometheus, which have no keys."""


class RequireKey:
    """Middleware that answers 401 to a request for a guarded path unless its bearer token is one of the keys."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._keys.accept(_bearer(scope)):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "This server wants one of its API keys, as in the header 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
        )
        await respond(scope, error)(scope, receive, send)


def _bearer(scope: Scope) -> bytes:
    """The request's token; empty if it has none, which is never a key."""
    scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
