"""GET /health and /ready: whether to restart this server, and whether to send it requests.

GET /ping and /version are here too.
"""

from typing import Any

from fastapi import APIRouter, Response

from service.api.context import Served
from service.api.schemas.answers import Health, Version
from service.versions import version_of

router = APIRouter(tags=["operation"])
_UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"model": Health}}


@router.get("/health", responses=_UNAVAILABLE, summary="Is the engine alive?")
async def health(response: Response, context: Served) -> Health:
    """503 once the engine has died or hangs: the server should be restarted. Loading and draining are healthy."""
    engine = context.client.health()
    if engine.alive:
        return Health(status="ok")
    response.status_code = 503
    return Health(status="unavailable", reason=engine.reason)


@router.get("/ping", responses=_UNAVAILABLE, summary="The same as /ready, for hosts that ask it by this name")
@router.get("/ready", responses=_UNAVAILABLE, summary="Can it take requests?")
async def ready(response: Response, context: Served) -> Health:
    """503 while the model loads, while the server drains, and with an engine that is dead or hangs."""
    engine = context.client.health()
    if engine.state == "ready" and not context.admission.draining:
        return Health(status="ready")
    response.status_code = 503
    if not engine.alive:
        return Health(status="unavailable", reason=engine.reason)
    return Health(status="draining" if context.admission.draining else "loading")


@router.get("/version", summary="Which version is this?")
async def version() -> Version:
    """The version of the server."""
    return Version(version=version_of("headlight"))
