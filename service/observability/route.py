"""GET /metrics."""

import gzip

from fastapi import APIRouter, Request, Response

from service.observability.metrics import Metrics


def router_of(metrics: Metrics) -> APIRouter:
    """A router with the route that renders these metrics."""
    router = APIRouter(tags=["operation"])

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    def tell(request: Request) -> Response:
        """Counters, gauges and histograms in Prometheus's text format, or in OpenMetrics if asked for."""
        openmetrics = "application/openmetrics-text" in request.headers.get("accept", "")
        body, media_type = metrics.render(as_openmetrics=openmetrics)
        headers = {"Vary": "Accept, Accept-Encoding"}
        if _takes_gzip(request.headers.get("accept-encoding", "")):
            body = gzip.compress(body, compresslevel=6)
            headers["Content-Encoding"] = "gzip"
        return Response(body, headers=headers, media_type=media_type)

    return router


def _takes_gzip(accept_encoding: str) -> bool:
    """Whether a header Accept-Encoding lists gzip, and not with the weight 0."""
    for item in accept_encoding.split(","):
        name, *weights = (part.strip().lower().replace(" ", "") for part in item.split(";"))
        if name == "gzip":
            return not any(weight in ("q=0", "q=0.0", "q=0.00", "q=0.000") for weight in weights)
    return False
