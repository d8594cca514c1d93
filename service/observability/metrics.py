"""Prometheus metrics in two registries: one for answered requests, one for the state of engine and process.

They are apart because each of several API processes sees only its part of the requests but all of the state. Label
values are the model's name, route templates, and names from fixed sets: never text that a client wrote.
"""

import os
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from service.engine.interface import EngineClient
from service.observability.engine_series import EngineCollector
from service.observability.exemplars import Exemplars, WithExemplars
from service.observability.process_series import ApiProcessCollector
from service.observability.vllm_names import WithVllmNames

FINISH_REASONS = ("stop", "length", "abort", "error")
REJECTIONS = {
    "queue_full": "queue_full",
    "draining": "draining",
    "model_loading": "unavailable",
    "engine_unavailable": "unavailable",
    "context_length_exceeded": "too_long",
    "deadline_exceeded": "deadline",
    "key_queue_full": "key_limit",
    "key_tokens_exceeded": "key_limit",
}
"""Error codes of completions that were rejected but otherwise valid, with the reasons that they count under."""

# From a fast GPU's batch of one to a slow CPU's long queue.
_FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_BETWEEN_TOKENS = (
    *(0.0005, 0.001, 0.0015, 0.0025, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
_PHASE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_WHOLE = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_TOKENS = tuple(float(2**power) for power in range(18))
_COUNT = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)

FIRST_TOKEN, LATENCY = "time_to_first_token_seconds", "e2e_request_latency_seconds"
EXEMPLIFIED = {FIRST_TOKEN: _FIRST_TOKEN, LATENCY: _WHOLE}
"""Histograms whose buckets may lead to traces, with their bounds."""


class _All(Collector):
    """The metrics of several collectors."""

    def __init__(self, *collectors: Collector) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            yield from collector.collect()


class Metrics:
    """The server's metrics."""

    def __init__(
        self,
        client: EngineClient,
        model_name: str,
        *,
        sums: CollectorRegistry | None = None,
        pids: Callable[[], Mapping[int, int]] = lambda: {0: os.getpid()},
        vllm_names: bool = True,
    ) -> None:
        """`client` is asked for the engine's counts at every scrape.

        `sums` adds up the counts of all processes that share them; `pids` gives the living processes' ids by slot.
        With `vllm_names` the series that vLLM has too are told under its names as well.
        """
        self._model_name = model_name
        self._requests = CollectorRegistry()
        self._state = CollectorRegistry()
        self._state.register(EngineCollector(client, model_name))
        self._state.register(ApiProcessCollector(pids))
        self._exemplars = Exemplars()
        everything: Collector = WithExemplars(_All(self._state, sums or self._requests), self._exemplars)
        self._everything = WithVllmNames(everything) if vllm_names else everything

        self._completions = self._counter(
            "request_success", "Completions that ended, by reason; abort: the client left.", "finished_reason"
        )
        self._rejections = self._counter(
            "admission_rejections", "Requests for completions that were turned away, by reason.", "reason"
        )
        self._responses = self._counter(
            "http_responses",
            "HTTP responses to others than probes, by the route's template, method and status.",
            *("route", "method", "status"),
        )
        # A replica that loads or drains says so by 503, which is no server error.
        self._probes = self._counter(
            "http_probes", "HTTP responses to probes and scrapes.", "route", "method", "status"
        )
        self.first_token = self._histogram(FIRST_TOKEN, "From request to first token.", _FIRST_TOKEN)
        self.between_tokens = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of a completion.", _BETWEEN_TOKENS
        )
        self.time_per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time between a completion's tokens.", _BETWEEN_TOKENS
        )
        self.latency = self._histogram(LATENCY, "From request to last token.", _WHOLE)
        self.queue_time = self._histogram(
            "request_queue_time_seconds", "From the engine's taking a request to its first step.", _PHASE
        )
        self.inference_time = self._histogram(
            "request_inference_time_seconds", "From a request's first step to its last token.", _PHASE
        )
        self.prefill_time = self._histogram(
            "request_prefill_time_seconds", "From a request's first step to its first token.", _PHASE
        )
        self.decode_time = self._histogram(
            "request_decode_time_seconds", "From a request's first token to its last.", _PHASE
        )
        self.prompt_tokens = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.generation_tokens = self._histogram("request_generation_tokens", "Tokens of a completion.", _TOKENS)
        self.max_tokens = self._histogram(
            "request_params_max_tokens", "Tokens that a completion may have at most.", _TOKENS
        )
        self.n = self._histogram("request_params_n", "Completions that a request asks for, of each prompt.", _COUNT)
        self.longest = self._histogram(
            "request_max_num_generation_tokens", "Tokens of the longest completion of a prompt.", _TOKENS
        )
        self.loop_lag = self._histogram(
            "event_loop_lag_seconds", "How late the process that answers requests wakes from a short sleep.", _LAG
        )
        # An event that has not happened yet counts as 0 instead of being missing.
        for reason in FINISH_REASONS:
            self._completions.labels(model_name, reason)
        for reason in REJECTIONS.values():
            self._rejections.labels(model_name, reason)

    def count_completion(self, reason: str) -> None:
        """Count a completion that has ended, for one of `FINISH_REASONS`."""
        self._completions.labels(self._model_name, reason).inc()

    def count_response(self, route: str, method: str, status: int, error: str | None, *, probe: bool) -> None:
        """Count an answered request; `error` is the code of its error, if it has one."""
        counter = self._probes if probe else self._responses
        counter.labels(self._model_name, route, method, status).inc()
        if error in REJECTIONS:
            self._rejections.labels(self._model_name, REJECTIONS[error]).inc()

    def note_trace(self, name: str, seconds: float, trace_id: str, moment: float) -> None:
        """Remember a trace as the exemplar of a value that one of the histograms in `EXEMPLIFIED` has observed.

        `moment` is in Unix seconds.
        """
        self._exemplars.note(f"headlight_{name}", EXEMPLIFIED[name], seconds, trace_id, moment)

    def render(self, *, as_openmetrics: bool = False) -> tuple[bytes, str]:
        """All metrics, and their media type: Prometheus's text format, or OpenMetrics, which has exemplars."""
        if as_openmetrics:
            # Any other escaping takes the colon out of vLLM's names, which Prometheus has always allowed there.
            body = openmetrics.generate_latest(self._everything, escaping=openmetrics.ALLOWUTF8)
            return body, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self._everything), CONTENT_TYPE_LATEST

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"headlight_{name}", help, ["model_name", *labels], registry=self._requests)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"headlight_{name}", help, ["model_name"], buckets=buckets, registry=self._requests)
        return histogram.labels(self._model_name)
