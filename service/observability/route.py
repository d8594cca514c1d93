"""GET /metrics."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.observability.metrics import Metrics


def router_of(metrics: Metrics) -> APIRouter:
    """A router with the route that renders these metrics."""
    router = APIRouter(tags=["operation"])

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    def tell() -> Response:
        """Counters, gauges and histograms in Prometheus's text format."""
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router
