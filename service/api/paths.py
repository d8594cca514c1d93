"""The plain form of a request's path: without the prefix of a proxy, and without a slash at its end.

Everything inside this middleware (keys, hosts, routes, metrics) sees that form alone. Nothing is redirected, since
clients lose a body on the way.
"""

from starlette.types import ASGIApp, Receive, Scope, Send


class PlainPath:
    """Middleware that takes `root_path`, such as /llm, off a path; a proxy may have taken it off already."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # Changed in place, because the observer finds the route in this same scope.
            scope["path"] = self._plain(scope["path"])
        await self._app(scope, receive, send)

    def _plain(self, path: str) -> str:
        if f"{path}/".startswith(f"{self._root_path}/"):
            path = path.removeprefix(self._root_path)
        return path.rstrip("/") or "/"
