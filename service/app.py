"""The composition root of the HTTP side: builds the app from its parts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware import Middleware

from service.api import chat, completions, errors, health, models, tokenize
from service.api.admission import Admission
from service.api.auth import RequireKey
from service.api.bodies import BodyLimit
from service.api.context import Context
from service.api.observe import Observe
from service.engine.client import EngineClient
from service.keys import ApiKeys
from service.launch import Launch
from service.loop_lag import watch_loop
from service.metrics import Metrics
from service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from service.traces import Traces

ROUTERS = (chat.router, completions.router, models.router, tokenize.router, health.router)

_DESCRIPTION = """Completions and chat in the form of OpenAI's API.

A field that a route doesn't list is refused with status 400 and its name, unless its value asks for nothing; by the
setting `unknown_fields` one that nobody knows is ignored and named in `X-Headlight-Ignored` instead. Null means a
field's default. Streams are server-sent events that end with `data: [DONE]`."""


def create_app(
    settings: Settings, launch: Launch, client: EngineClient, admission: Admission, metrics: Metrics, *, started: int
) -> FastAPI:
    """The ASGI app. It answers /health and /ready at once, while the engine is still loading.

    `admission` is shared with the server, which stops it at shutdown. `started` is when the server was, in Unix time.
    Raises SettingsError if traces are asked for and their libraries are not installed.
    """
    keys = ApiKeys(settings)
    traces = _open_traces(settings.otlp_endpoint, launch.model_name) if settings.otlp_endpoint else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(watch_loop(metrics.loop_lag.observe))
        try:
            yield
        finally:
            client.stop()
            watch.cancel()
            if traces is not None:
                await traces.close()

    app = FastAPI(
        title="Headlight",
        description=_DESCRIPTION,
        lifespan=lifespan,
        middleware=[
            Middleware(Observe, metrics, traces.export if traces else None),
            *([Middleware(RequireKey, keys)] if keys.required else []),
            Middleware(BodyLimit, settings.max_body),
        ],
        redoc_url=None,
        # FastAPI's own would also export what a client wrote in its URL; see service/traces.py for ours.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.context = Context(
        settings=settings,
        model_name=launch.model_name,
        client=client,
        tokenizer=launch.tokenizer,
        template=launch.template,
        sampling=launch.sampling,
        admission=admission,
        metrics=metrics,
        started=started,
    )
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)

    @app.get("/", include_in_schema=False)
    async def landing() -> dict[str, str]:
        return {"name": "Headlight", "model": launch.model_name, "docs": "/docs", "api": "/v1", "metrics": "/metrics"}

    app.openapi = lambda: _schema(app)  # type: ignore[method-assign]
    return app


def _open_traces(endpoint: str, model_name: str) -> "Traces":
    try:
        from service.traces import Traces
    except ModuleNotFoundError as error:
        raise SettingsError(f"otlp_endpoint needs {error.name}: pip install 'headlight[tracing]'") from None
    return Traces(endpoint, model_name)


def _schema(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description without its own form of validation errors, which are never sent."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    return schema
