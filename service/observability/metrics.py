"""Prometheus metrics in two registries: one for answered requests, one for the state of engine and process.

They are apart because each of several API processes sees only its part of the requests but all of the state. Label
values are the model's name, route templates, and names from fixed sets: never text that a client wrote.
"""

import os
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from service.engine.interface import EngineClient
from service.observability.engine_series import EngineCollector
from service.observability.process_series import ApiProcessCollector

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

_FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_WHOLE = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_TOKENS = tuple(float(2**power) for power in range(18))


class Metrics:
    """The server's metrics."""

    def __init__(
        self,
        client: EngineClient,
        model_name: str,
        *,
        sums: CollectorRegistry | None = None,
        pids: Callable[[], Mapping[int, int]] = lambda: {0: os.getpid()},
    ) -> None:
        """`client` is asked for the engine's counts at every scrape.

        `sums` adds up the counts of all processes that share them; `pids` gives the living processes' ids by slot.
        """
        self._model_name = model_name
        self._requests = CollectorRegistry()
        self._state = CollectorRegistry()
        self._state.register(EngineCollector(client, model_name))
        self._state.register(ApiProcessCollector(pids))
        self._sums = sums or self._requests

        self._completions = self._counter(
            "request_success", "Completions that ended, by reason; abort: the client left.", "finished_reason"
        )
        self._rejections = self._counter(
            "admission_rejections", "Requests for completions that were turned away, by reason.", "reason"
        )
        self._responses = self._counter(
            "http_responses", "HTTP responses, by the route's template, method and status.", "route", "method", "status"
        )
        self.first_token = self._histogram("time_to_first_token_seconds", "From request to first token.", _FIRST_TOKEN)
        self.between_tokens = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of a completion.", _BETWEEN_TOKENS
        )
        self.time_per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time between a completion's tokens.", _BETWEEN_TOKENS
        )
        self.latency = self._histogram("e2e_request_latency_seconds", "From request to last token.", _WHOLE)
        self.queue_time = self._histogram(
            "request_queue_time_seconds", "From the engine's taking a request to its first step.", _WHOLE
        )
        self.prefill_time = self._histogram(
            "request_prefill_time_seconds", "From a request's first step to its first token.", _WHOLE
        )
        self.decode_time = self._histogram(
            "request_decode_time_seconds", "From a request's first token to its last.", _WHOLE
        )
        self.prompt_tokens = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.generation_tokens = self._histogram("request_generation_tokens", "Tokens of a completion.", _TOKENS)
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

    def count_response(self, route: str, method: str, status: int, error: str | None) -> None:
        """Count an answered request; `error` is the code of its error, if it has one."""
        self._responses.labels(self._model_name, route, method, status).inc()
        if error in REJECTIONS:
            self._rejections.labels(self._model_name, REJECTIONS[error]).inc()

    def render(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._state) + generate_latest(self._sums)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"headlight_{name}", help, ["model_name", *labels], registry=self._requests)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"headlight_{name}", help, ["model_name"], buckets=buckets, registry=self._requests)
        return histogram.labels(self._model_name)
