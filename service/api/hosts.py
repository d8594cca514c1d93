"""Refuses requests for other hosts than the server's own.

A web page makes such requests after its own name was pointed at this server's IP (DNS rebinding).
"""

from collections.abc import Collection
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.auth import OPEN_PATHS
from service.api.errors import ApiError, respond


class RequireHost:
    """Middleware that answers 400 unless the Host header is one of `hosts`: names, IPs, *.domain, or * for any.

    The open paths also answer requests that name an IP or no host, because probes and Prometheus ask a pod by its IP.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._names = {host_name(host) for host in hosts}
        self._suffixes = tuple(host[1:] for host in self._names if host.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._fits(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(400, "This server does not serve the host that the request is for.", code="host_not_allowed")
        await respond(scope, error)(scope, receive, send)

    def _fits(self, scope: Scope) -> bool:
        # A request should have one Host header; a sender of several hopes that one is overlooked.
        given = [host_name(host) for host in Headers(scope=scope).getlist("host")] or [""]
        if scope["path"] in OPEN_PATHS and all(name == "" or _is_ip(name) for name in given):
            return True
        return all(self._is_allowed(name) for name in given)

    def _is_allowed(self, name: str) -> bool:
        return "*" in self._names or name in self._names or name.endswith(self._suffixes)


def host_name(host: str) -> str:
    """The name or IP in a Host header, without port and brackets, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".") if host.count(":") < 2 else host


def _is_ip(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
