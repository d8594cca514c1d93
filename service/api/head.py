"""HEAD for every route: the answer to GET, without the body."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """Middleware that turns HEAD into GET, and lets only the status and the headers out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def bare(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        # A copy of the scope, because logs and metrics should show HEAD; they also need the route that is found below.
        inner = dict(scope, method="GET")
        try:
            await self._app(inner, receive, bare)
        finally:
            scope["route"] = inner.get("route")
