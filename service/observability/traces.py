"""OpenTelemetry traces: the spans of a request, made from its record when it has ended.

Import this module only if an endpoint is set: it needs the libraries of the extra `tracing`. A thread of these
libraries exports the spans; spans that come too fast, or that the collector refuses, are dropped.
"""

import asyncio
from collections.abc import Mapping
from threading import Thread

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.observability.record import RequestRecord, TraceId
from service.observability.timeline import Timeline
from service.versions import version_of

PATH = "/v1/traces"
EXPORT_SECONDS = 5.0
"""Seconds that one export may take before its spans are dropped."""
LEAVE_SECONDS = 3.0
"""Seconds that the server waits at its end for the last spans."""


class Traces:
    """Makes spans of requests, and has them exported to an OTLP collector over HTTP."""

    def __init__(self, endpoint: str, model_name: str) -> None:
        """`endpoint` is the collector's URL, with or without `PATH`."""
        url = endpoint if endpoint.endswith(PATH) else endpoint.rstrip("/") + PATH
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over our own values.
        ours = Resource.create({SERVICE_NAME: "headlight", SERVICE_VERSION: version_of("headlight")})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url, timeout=EXPORT_SECONDS)))
        self._tracer = self._provider.get_tracer("headlight")
        self._propagator = TraceContextTextMapPropagator()
        self._model_name = model_name

    def export(self, record: RequestRecord, headers: Mapping[str, str]) -> TraceId:
        """Make the spans of a request that has ended; returns the trace's id.

        The root's parent is the span that the headers name in W3C's form (traceparent), if they do.
        """
        assert record.ended is not None
        root = self._tracer.start_span(
            f"{record.method} {record.route or ''}".rstrip(),
            self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            start_time=_at(record, record.began),
            attributes=self._attributes(record),
        )
        if record.status is not None and record.status >= 500:
            root.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(root)
        for index, timeline in enumerate(record.timelines):
            self._phases(record, index, timeline, inside)
        if record.stream and record.responded is not None:
            self._span(record, "stream", inside, record.responded, record.ended)
        root.end(_at(record, record.ended))
        made = root.get_span_context()
        return TraceId(format_trace_id(made.trace_id), made.trace_flags.sampled)

    async def close(self) -> None:
        """Export the remaining spans, for at most `LEAVE_SECONDS`: a collector that is gone must not hold up the
        server.
        """
        # Not a thread of the event loop's pool, because the loop waits for these at its end.
        closing = Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, LEAVE_SECONDS)

    def _attributes(self, record: RequestRecord) -> dict[str, str | int | list[str]]:
        attributes: dict[str, str | int | list[str] | None] = {
            "http.request.method": record.method,
            "http.route": record.route,
            "http.response.status_code": record.status,
            "error.type": record.error,
            "headlight.client_request_id": record.client_id,
        }
        if record.timelines:
            attributes |= {
                "gen_ai.request.model": self._model_name,
                "gen_ai.response.id": record.id,
                "gen_ai.response.finish_reasons": record.finish_reasons,
                "gen_ai.usage.input_tokens": record.prompt_tokens,
                "gen_ai.usage.output_tokens": record.completion_tokens,
                "headlight.cached_tokens": record.cached_tokens,
            }
        return {name: value for name, value in attributes.items() if value is not None}

    def _phases(self, record: RequestRecord, index: int, timeline: Timeline, inside: Context) -> None:
        """Make a completion's spans from the engine's durations: they follow each other from its submission on."""
        began, times = timeline.submitted, timeline.times
        prompt = {"prompt_tokens": timeline.prompt_tokens, "cached_tokens": timeline.cached_tokens}
        for name, seconds, counts in (
            ("queue", times.queue, {}),
            ("prefill", times.prefill, prompt),
            ("decode", times.decode, {"completion_tokens": timeline.tokens}),
        ):
            if seconds is None:
                return
            self._span(record, name, inside, began, began + seconds, choice=index, **counts)
            began += seconds

    def _span(
        self, record: RequestRecord, name: str, inside: Context, began: float, ended: float, **counts: int
    ) -> None:
        attributes = {f"headlight.{name}": count for name, count in counts.items()}
        span = self._tracer.start_span(name, inside, start_time=_at(record, began), attributes=attributes)
        span.end(_at(record, ended))


def _at(record: RequestRecord, moment: float) -> int:
    """A moment on the record's clock, in nanoseconds since 1970."""
    return record.began_unix_ns + round((moment - record.began) * 1e9)
