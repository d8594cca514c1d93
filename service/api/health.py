"""GET /health and /ready: whether to restart this server, and whether to send it requests.

GET /ping and /version are here too.
"""

from typing import Any, Literal

from fastapi import APIRouter, Response

from service.api.context import Served
from service.api.errors import RETRY_SECONDS
from service.api.schemas.answers import Health, Version
from service.versions import version_of

router = APIRouter(tags=["operation"])
_UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"model": Health}}


@router.get("/health", responses=_UNAVAILABLE, summary="Is the engine alive?")
async def health(response: Response, context: Served) -> Health:
    """503 while there is no engine, because it died or hung: once it stays so, the server should be restarted.

    Loading and draining are healthy. An engine that died is usually started again; while it loads, the answer is 200
    with status "loading".
    """
    engine = context.client.health()
    if not engine.alive:
        return _unavailable(response, engine.reason)
    return Health(status="ok" if engine.state == "ready" else "loading", reason=engine.reason)


@router.get("/ping", responses=_UNAVAILABLE, summary="The same as /ready, for hosts that ask it by this name")
@router.get("/ready", responses=_UNAVAILABLE, summary="Can it take requests?")
async def ready(response: Response, context: Served) -> Health:
    """503 while the model loads, while the server drains, and with an engine that is dead or hangs."""
    engine = context.client.health()
    if not engine.alive:
        return _unavailable(response, engine.reason)
    if context.admission.draining:
        return _unavailable(response, "the server finishes its requests and ends", "draining")
    if engine.state != "ready":
        return _unavailable(response, engine.reason, "loading")
    return Health(status="ready")


def _unavailable(
    response: Response, reason: str, status: Literal["unavailable", "draining", "loading"] = "unavailable"
) -> Health:
    response.status_code = 503
    response.headers["retry-after"] = str(RETRY_SECONDS)
    return Health(status=status, reason=reason)


@router.get("/version", summary="Which version is this?")
async def version() -> Version:
    """The version of the server."""
    return Version(version=version_of("headlight"))
