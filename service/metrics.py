"""Prometheus metrics: the engine's own counts, read when scraped, and what the request path sees as it happens.

Knows no routes: labels are route templates and finish reasons, never anything that a client wrote.
"""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.engine.client import EngineClient
from service.generation import GenerationError, GenerationRequest

_FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKENS = tuple(float(4**power) for power in range(10))


class Metrics:
    """The server's metrics, in a registry of their own."""

    def __init__(self, client: EngineClient, model_name: str) -> None:
        """`client` is asked for the engine's counts at every scrape."""
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(client, model_name))
        self.requests = Counter(
            "headlight_requests",
            "Completions that ended, by reason; abort: the client left.",
            ["finish_reason"],
            registry=self._registry,
        )
        self.responses = Counter(
            "headlight_http_responses",
            "HTTP responses, by the route's template, method and status.",
            ["route", "method", "status"],
            registry=self._registry,
        )
        self.first_token = self._histogram("time_to_first_token_seconds", "From request to first token.", _FIRST_TOKEN)
        self.between_tokens = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of a completion.", _BETWEEN_TOKENS
        )
        self.latency = self._histogram("e2e_request_latency_seconds", "From request to last token.", _WHOLE)
        self.prompt_tokens = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.generated_tokens = self._histogram("request_generation_tokens", "Tokens of a completion.", _TOKENS)
        for reason in ("stop", "length", "abort", "error"):
            self.requests.labels(reason)

    def timeline(self, request: GenerationRequest) -> "Timeline":
        """Measures one completion; to be entered when it is submitted."""
        return Timeline(self, len(request.prompt))

    def render(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"headlight_{name}", help, buckets=buckets, registry=self._registry)


class Timeline:
    """The moments of one completion, measured between entering and leaving its `with`."""

    def __init__(self, metrics: Metrics, prompt_tokens: int) -> None:
        self._metrics = metrics
        self._prompt_tokens = prompt_tokens
        self._tokens = 0
        self._reason: str | None = None
        self._start = self._last = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def token(self, finish_reason: str | None) -> None:
        """A token has come; the last one has a reason."""
        now = time.perf_counter()
        histogram = self._metrics.between_tokens if self._tokens else self._metrics.first_token
        histogram.observe(now - self._last)
        self._last = now
        self._tokens += 1
        if finish_reason is not None:
            self._end(finish_reason)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._reason is None:
            self._end("error" if isinstance(error, GenerationError) else "abort")

    def _end(self, reason: str) -> None:
        self._reason = reason
        self._metrics.requests.labels(reason).inc()
        self._metrics.latency.observe(time.perf_counter() - self._start)
        self._metrics.prompt_tokens.observe(self._prompt_tokens)
        self._metrics.generated_tokens.observe(self._tokens)


class _EngineCollector(Collector):
    """The engine's latest counts as metrics, three of them also under the names that autoscalers look for."""

    def __init__(self, client: EngineClient, model_name: str) -> None:
        self._client = client
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        stats = self._client.stats
        use = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
        gauges = (
            ("requests_running", "Completions in the batch.", stats.running, "num_requests_running"),
            ("requests_waiting", "Completions in the queue.", stats.waiting, "num_requests_waiting"),
            ("kv_cache_usage_ratio", "Share of KV cache blocks in use, 0 to 1.", use, "kv_cache_usage_perc"),
        )
        for name, help, value, known_name in gauges:
            yield GaugeMetricFamily(f"headlight_{name}", help, value=value)
            known = GaugeMetricFamily(f"vllm:{known_name}", help, labels=["model_name"])
            known.add_metric([self._model_name], value)
            yield known
        for name, help, total in (
            ("prompt_tokens", "Prompt tokens computed; those found in the prefix cache apart.", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated.", stats.generated_tokens),
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_hits),
            ("preemptions", "Times that a completion gave up its blocks for an older one.", stats.preemptions),
            ("steps", "Steps of the engine.", stats.steps),
            ("schedule_seconds", "Time spent on planning steps.", stats.schedule_seconds),
            ("forward_seconds", "Time spent in the model.", stats.forward_seconds),
            ("sample_seconds", "Time spent on drawing tokens.", stats.sample_seconds),
            ("engine_restarts", "Times that the engine died and was started again.", self._client.restarts),
        ):
            yield CounterMetricFamily(f"headlight_{name}", help, value=total)


class CountResponses:
    """Middleware that counts responses."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "unmatched")
                self._metrics.responses.labels(route, _method(scope["method"]), message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted)


def _method(method: str) -> str:
    """A client may invent methods, but not labels."""
    return method if method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE") else "other"
