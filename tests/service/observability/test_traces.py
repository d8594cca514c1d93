"""Traces as a collector gets them: the real exporter, over HTTP, from a server with a scripted engine."""

import asyncio
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from service.settings import SettingsError
from tests.service.api.fakes import MODEL, TEMPLATE, build, serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """An OTLP collector on a port of its own; it can be made to fail, or to keep its clients waiting."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.status = 200
        self.go_on = Event()
        self.go_on.set()
        self.asked = Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.asked.set()
                collector.go_on.wait(30)
                if collector.status == 200:
                    collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.status)
                self.end_headers()

            def log_message(self, *arguments: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = Thread(target=collector.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield collector
    collector.go_on.set()
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


def attributes(span: Span) -> dict[str, Any]:
    def value(given: Any) -> Any:
        kind = given.WhichOneof("value")
        return [value(each) for each in given.array_value.values] if kind == "array_value" else getattr(given, kind)

    return {pair.key: value(pair.value) for pair in span.attributes}


def seconds(span: Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


@contextmanager
def within(limit: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < limit


@pytest.mark.parametrize("sampled", [True, False])
async def test_latencies_lead_to_traces_that_are_kept(collector: Collector, sampled: bool) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-0{int(sampled)}"}
    async with serving(otlp_endpoint=collector.url) as server:
        await server.http.post("/v1/completions", json={"prompt": "hi", "n": 2}, headers=headers)
        answer = await server.http.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    told = {
        (sample.name, sample.exemplar.labels["trace_id"])
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.exemplar is not None
    }
    latencies = ("time_to_first_token_seconds", "e2e_request_latency_seconds")
    prefixes = ("headlight_", "vllm:")
    expected = {(f"{prefix}{name}_bucket", TRACE) for prefix in prefixes for name in latencies}
    assert told == (expected if sampled else set())


async def test_a_stream_is_a_root_with_four_phases(collector: Collector) -> None:
    before = time.time_ns()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "trip-7"}
    async with serving(otlp_endpoint=collector.url) as server:
        server.engine.cached_tokens = 2
        await server.http.post("/v1/completions", json={"prompt": "hi", "stream": True}, headers=headers)
    spans = {span.name: span for span in collector.spans}
    assert len(collector.spans) == len(spans) == 5
    root = spans.pop("POST /v1/completions")
    assert list(spans) == ["queue", "prefill", "decode", "stream"]
    assert (root.kind, root.parent_span_id.hex()) == (Span.SPAN_KIND_SERVER, PARENT)
    assert {span.trace_id.hex() for span in (root, *spans.values())} == {TRACE}
    assert {span.parent_span_id for span in spans.values()} == {root.span_id}
    said = attributes(root)
    assert said.pop("gen_ai.response.id").startswith("cmpl-")
    assert said == {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "headlight.client_request_id": "trip-7",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 13,
        "headlight.cached_tokens": 2,
    }
    assert attributes(spans["prefill"]) == {
        "headlight.choice": 0,
        "headlight.prompt_tokens": 3,
        "headlight.cached_tokens": 2,
    }
    assert attributes(spans["decode"]) == {"headlight.choice": 0, "headlight.completion_tokens": 13}
    # The engine's phases follow each other, as long as it said that each was.
    queue, prefill, decode = spans["queue"], spans["prefill"], spans["decode"]
    assert [seconds(span) for span in (queue, prefill, decode)] == pytest.approx([0.25, 0.5, 2.0])
    assert queue.end_time_unix_nano == prefill.start_time_unix_nano
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano
    assert before < root.start_time_unix_nano <= queue.start_time_unix_nano <= time.time_ns()
    assert spans["stream"].end_time_unix_nano == root.end_time_unix_nano <= time.time_ns()
    resource = {
        pair.key: pair.value.string_value for pair in collector.requests[0].resource_spans[0].resource.attributes
    }
    assert (resource["service.name"], resource["service.version"]) == ("headlight", "0.1.0")


async def test_choices_have_phases_of_their_own_and_probes_have_no_trace(collector: Collector) -> None:
    async with serving(otlp_endpoint=f"{collector.url}/v1/traces") as server:
        await server.complete(n=3)
        for path in ("/health", "/ready", "/metrics"):
            await server.http.get(path)
    names = [span.name for span in collector.spans]
    assert sorted(names) == sorted(["POST /v1/completions", *["queue", "prefill", "decode"] * 3])
    decodes = [attributes(span)["headlight.choice"] for span in collector.spans if span.name == "decode"]
    assert decodes == [0, 1, 2]


async def test_the_log_names_the_trace(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(otlp_endpoint=collector.url) as server:
        await server.complete()
        fields = next(vars(record)["fields"] for record in caplog.records if record.name == "service.api.observe")
    assert {span.trace_id.hex() for span in collector.spans} == {fields["trace_id"]}


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "00",
        f"00-{TRACE}-{PARENT}",
        f"ff-{TRACE}-{PARENT}-01",
        "00-" + "0" * 32 + "-" + "0" * 16 + "-01",
        "%s%n" * 999,
    ],
)
async def test_a_parent_that_makes_no_sense_is_none(collector: Collector, hostile: str) -> None:
    async with serving(otlp_endpoint=collector.url) as server:
        response = await server.http.get("/v1/models", headers={"traceparent": hostile, "tracestate": hostile})
        assert response.status_code == 200
    (root,) = collector.spans
    assert root.parent_span_id == b""
    assert root.trace_id.hex() != TRACE


async def test_what_failed_and_who_left(collector: Collector) -> None:
    async with serving(otlp_endpoint=collector.url, max_running=1, max_waiting=0) as server:
        await server.complete(temperature=9)
        server.engine.running.clear()
        task = asyncio.create_task(server.complete())
        await server.until(lambda: server.engine.streams)
        task.cancel()
        await server.until(lambda: server.admission.open == 0)
        server.engine.submit = None  # type: ignore[assignment,method-assign]
        await server.complete()
    refused, left, failed = collector.spans
    assert [attributes(span)["http.response.status_code"] for span in (refused, left, failed)] == [400, 499, 500]
    assert attributes(left)["gen_ai.response.finish_reasons"] == ["abort"]
    assert attributes(failed)["error.type"] == "internal_error"
    codes = [span.status.code for span in (refused, left, failed)]
    assert codes == [Status.STATUS_CODE_UNSET, Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR]


@pytest.mark.parametrize("mishap", ["refused", "failing", "hanging"])
async def test_a_collector_in_trouble_harms_nobody(
    collector: Collector, mishap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.observability.traces.LEAVE_SECONDS", 0.5)
    url = collector.url
    match mishap:
        case "refused":
            url = "http://127.0.0.1:9"
        case "failing":
            collector.status = 503
        case "hanging":
            collector.go_on.clear()
    # A request that waited for a collector would wait until its export is dropped, after five seconds.
    with within(0.5 + 5):
        async with serving(otlp_endpoint=url) as server:
            with within(4):
                for _ in range(5):
                    assert (await server.complete()).status_code == 200
    collector.go_on.set()


def test_the_libraries_are_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "service.observability.traces")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"headlight\[tracing\]") as caught:
        build(TEMPLATE, {"otlp_endpoint": "http://127.0.0.1:9"})
    assert "\n" not in str(caught.value)
