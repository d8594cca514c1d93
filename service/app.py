"""The composition root of the HTTP side: builds the app from its parts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from starlette.middleware import Middleware

from service.api import (
    chat,
    completions,
    docs,
    embeddings,
    errors,
    health,
    inspect,
    messages,
    models,
    page,
    responses,
    scores,
    tokenize,
)
from service.api.admission import Admission
from service.api.auth import RequireKey, no_path
from service.api.bodies import BodyLimit
from service.api.context import Context
from service.api.head import HeadAsGet
from service.api.hosts import RequireHost
from service.api.keys import ApiKeys
from service.api.leftovers import Leftovers
from service.api.observe import Observe
from service.api.origins import AllowOrigins
from service.api.paths import PlainPath
from service.engine.interface import EngineClient
from service.observability import route
from service.observability.loop_lag import watch_loop
from service.observability.metrics import Metrics
from service.served_model import ServedModel
from service.settings import Settings, SettingsError, listed
from service.versions import version_of

if TYPE_CHECKING:
    from service.observability.traces import Traces

ROUTERS = (
    chat.router,
    completions.router,
    embeddings.router,
    inspect.router,
    messages.router,
    messages.counting,
    models.router,
    responses.router,
    responses.stored,
    scores.router,
    tokenize.router,
    health.router,
    docs.router,
)

_DESCRIPTION = """Completions, chat and responses in the form of OpenAI's API, and messages in the form of Anthropic's.

A field that a route doesn't list is refused with status 400 and its name, unless its value asks for nothing; by the
setting `unknown_fields` one that nobody knows is ignored and named in `X-Headlight-Ignored` instead. Null means a
field's default. Streams are server-sent events; those of completions and chat end with `data: [DONE]`."""


def create_app(
    settings: Settings,
    served: ServedModel,
    client: EngineClient,
    admission: Admission,
    metrics: Metrics,
    *,
    started: int,
) -> FastAPI:
    """Build the ASGI app. It answers /health and /ready at once, while the engine is still loading.

    `admission` is shared with the server, which stops it at shutdown. `started` is the server's start in Unix seconds.
    Raises SettingsError if traces are asked for and their libraries are not installed, and if one of the server's own
    paths begins with root_path.
    """
    root_path = settings.root_path or ""
    traces = _open_traces(settings.otlp_endpoint, served.model_name) if settings.otlp_endpoint else None
    app = FastAPI(
        title="Headlight",
        version=version_of("headlight"),
        description=_DESCRIPTION,
        lifespan=_lifespan(client, metrics, traces),
        middleware=_middleware(settings, metrics, traces),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        # FastAPI's own telemetry would export what a client wrote in its URL; observability/traces.py makes ours.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.context = Context(
        settings=settings,
        model_names=served.model_names,
        client=client,
        tokenizer=served.tokenizer,
        template=served.template,
        sampling=served.sampling,
        admission=admission,
        metrics=metrics,
        started=started,
    )
    errors.install(app)
    landing = page.router_of(root_path) if settings.page else _landing(root_path, served.model_name)
    for router in (*ROUTERS, route.router_of(metrics), landing):
        app.include_router(router)
    if root_path and any(f"{route.path}/".startswith(f"{root_path}/") for route in iter_route_contexts(app.routes)):
        raise SettingsError(f"root_path: paths of the server's own begin with {root_path}, so that it says nothing")
    app.openapi = lambda: _schema(app, root_path)  # type: ignore[method-assign]
    return app


def _lifespan(
    client: EngineClient, metrics: Metrics, traces: "Traces | None"
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """The work beside requests: the event loop's lag is watched, and at the end client and traces are closed."""

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

    return lifespan


def _middleware(settings: Settings, metrics: Metrics, traces: "Traces | None") -> list[Middleware]:
    """The middleware that the settings ask for, the outermost first."""
    keys = ApiKeys(settings)
    hosts, origins = listed(settings.allowed_hosts), listed(settings.allowed_origins)
    is_open = page.is_of_page if settings.page else no_path
    return [
        Middleware(PlainPath, settings.root_path or ""),
        Middleware(Leftovers),
        Middleware(Observe, metrics, traces.export if traces else None),
        *([Middleware(RequireHost, hosts)] if hosts else []),
        # Before the keys, because a browser sends no key with a preflight, which asks whether it may send one.
        *([Middleware(AllowOrigins, origins)] if origins else []),
        *([Middleware(RequireKey, keys, is_open)] if keys.required else []),
        Middleware(HeadAsGet),
        Middleware(BodyLimit, settings.max_body),
    ]


def _landing(root_path: str, model_name: str) -> APIRouter:
    """GET / of a server without its page: where everything is."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def landing() -> dict[str, str]:
        places = {"docs": "/docs", "api": "/v1", "metrics": "/metrics"}
        return {"name": "Headlight", "model": model_name} | {name: root_path + path for name, path in places.items()}

    return router


def _open_traces(endpoint: str, model_name: str) -> "Traces":
    try:
        from service.observability.traces import Traces
    except ModuleNotFoundError as error:
        raise SettingsError(f"otlp_endpoint needs {error.name}: pip install 'headlight[tracing]'") from None
    return Traces(endpoint, model_name)


def _schema(app: FastAPI, root_path: str) -> dict[str, Any]:
    """FastAPI's OpenAPI schema without its own form of validation errors, which are never sent."""
    schema = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        servers=[{"url": root_path}] if root_path else None,
    )
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    return schema
