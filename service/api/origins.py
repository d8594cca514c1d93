"""Web pages of other origins that may use the server (CORS)."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from service.api.errors import ApiError
from service.api.observe import IGNORED, REQUEST_ID

EXPOSED = (REQUEST_ID, IGNORED, "retry-after")
"""Headers of an answer that such a page may read, beside those that it always may."""


class AllowOrigins(CORSMiddleware):
    """Middleware that answers preflights, and tells browsers that pages of these origins may read the answers.

    It allows no credentials: keys are sent in a header by the page, never by the browser itself.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        """`origins` are such as https://app.example.com, or * for any."""
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=EXPOSED,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        refusal = ApiError(400, f"{bytes(response.body).decode()}.", code="origin_not_allowed")
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return JSONResponse(refusal.body.model_dump(), refusal.status_code, headers)
