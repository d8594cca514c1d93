"""What /metrics says, read by Prometheus's own parser."""

import asyncio
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from service.api.observe import PROBES
from service.engine.messages import STEP_TOKENS, Counters, Delta, EngineStats
from service.engine.status import EngineDead, EngineHealth
from service.observability.vllm_names import VLLM_NAMES
from tests.service.api.fakes import HI, LIMITS, TEMPLATE, TIMES, Caller, FakeClient, build, calling, serving

STATS = EngineStats(
    running=3, waiting=2, blocks_used=16, blocks_total=64,
    totals=Counters(
        steps=9, step_tokens=[2, 0, 3, *[0] * 11, 4], computed_tokens=40_000, prompt_tokens=100,
        cached_prompt_tokens=30, generated_tokens=50, prefix_queries=120, prefix_hits=20,
        preemptions=1, drafts=5, drafted_tokens=12, accepted_tokens=7, event_batches=6, dropped_event_batches=2,
    ),
    schedule_seconds=0.5, forward_seconds=1.5, sample_seconds=0.75, deliver_seconds=0.25,
)  # fmt: skip

MODEL = {"model_name": "toy"}


async def scrape(caller: Caller) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = (await caller.http.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, labels: Mapping[str, str] | None = None) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset((MODEL | dict(labels or {})).items())


async def test_the_engines_counts() -> None:
    async with calling() as caller:
        caller.engine.stats = STATS
        caller.engine.restarts = 2
        metrics = await scrape(caller)
        for name, value in {
            "headlight_num_requests_running": 3,
            "headlight_num_requests_waiting": 2,
            "headlight_kv_cache_usage_perc": 0.25,
            "headlight_prompt_tokens_total": 100,
            "headlight_prompt_tokens_cached_total": 30,
            "headlight_generation_tokens_total": 50,
            "headlight_prefix_cache_queries_total": 120,
            "headlight_prefix_cache_hits_total": 20,
            "headlight_num_preemptions_total": 1,
            "headlight_drafts_total": 5,
            "headlight_drafted_tokens_total": 12,
            "headlight_accepted_tokens_total": 7,
            "headlight_kv_event_batches_total": 6,
            "headlight_kv_event_batches_dropped_total": 2,
            "headlight_steps_total": 9,
            "headlight_engine_restarts_total": 2,
            "headlight_engine_up": 1,
        }.items():
            assert metrics[key(name)] == value, name
        for phase, seconds in {"schedule": 0.5, "forward": 1.5, "sample": 0.75, "deliver": 0.25}.items():
            assert metrics[key("headlight_step_seconds_total", {"phase": phase})] == seconds


VLLMS = {
    # Every series of the engine's that production-stack's dashboards and its autoscaler ask for.
    *("e2e_request_latency_seconds_bucket", "e2e_request_latency_seconds_count", "e2e_request_latency_seconds_sum"),
    *("generation_tokens_total", "gpu_cache_usage_perc", "gpu_prefix_cache_hits_total"),
    *("gpu_prefix_cache_queries_total", "kv_cache_usage_perc", "num_requests_running", "num_requests_waiting"),
    *("prompt_tokens_total", "request_decode_time_seconds_sum", "request_generation_tokens_bucket"),
    *("request_max_num_generation_tokens_sum", "request_prefill_time_seconds_sum", "request_prompt_tokens_bucket"),
    *("request_queue_time_seconds_sum", "request_success_total", "request_time_per_output_token_seconds_bucket"),
    *("request_time_per_output_token_seconds_count", "request_time_per_output_token_seconds_sum"),
    *("time_to_first_token_seconds_bucket", "time_to_first_token_seconds_count", "time_to_first_token_seconds_sum"),
    # And those of llm-d's workload-variant-autoscaler.
    *("request_prompt_tokens_sum", "request_prompt_tokens_count", "request_generation_tokens_sum"),
    *("request_generation_tokens_count", "time_per_output_token_seconds_sum", "time_per_output_token_seconds_count"),
    *("cache_config_info", "prefix_cache_hits_total", "prefix_cache_queries_total"),
    # And what else dashboards of vLLM's own ask for.
    *("num_preemptions_total", "prompt_tokens_cached_total", "admission_rejections_total"),
    *("inter_token_latency_seconds_bucket", "request_queue_time_seconds_bucket", "request_prefill_time_seconds_bucket"),
    *("request_decode_time_seconds_bucket", "iteration_tokens_total_bucket"),
}


async def test_others_dashboards_and_autoscalers_find_what_they_ask_for() -> None:
    async with calling() as caller:
        await caller.complete()
        metrics = await scrape(caller)
        assert {f"vllm:{name}" for name in VLLMS} <= {name for name, _ in metrics}
        assert all(dict(labels)["engine"] == "0" for name, labels in metrics if name.startswith("vllm:"))


async def test_all_that_vllm_has_too_is_the_same_under_its_name() -> None:
    async with calling() as caller:
        caller.engine.stats = STATS
        await caller.complete()
        text = (await caller.http.get("/metrics")).text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        for ours, names in VLLM_NAMES.items():
            told = families[f"headlight_{ours}"]
            for name in names:
                same = families[f"vllm:{name}"]
                assert (same.type, same.documentation) == (told.type, told.documentation)
                assert [(s.labels, s.value) for s in same.samples] == [
                    (sample.labels | {"engine": "0"}, sample.value) for sample in told.samples
                ]


async def test_vllms_names_can_be_left_out() -> None:
    async with calling(vllm_metrics=False) as caller:
        assert "vllm:" not in (await caller.http.get("/metrics")).text


async def test_no_histogram_of_ours_is_named_like_a_counter() -> None:
    async with calling() as caller:
        text = (await caller.http.get("/metrics")).text
        assert [
            family.name
            for family in text_string_to_metric_families(text)
            if family.type == "histogram" and family.name.startswith("headlight_") and family.name.endswith("_total")
        ] == []


async def test_probes_are_counted_apart() -> None:
    """A replica that loads answers /ready with 503, which is no error of the server's."""
    async with calling() as caller:
        caller.engine.state = EngineHealth("starting", "the model is loading")
        for path in ("/health", "/ready", "/ping", "/metrics"):
            await caller.http.get(path)
        metrics = await scrape(caller)
        assert metrics[key("headlight_http_probes_total", {"route": "/ready", "method": "GET", "status": "503"})] == 1
        assert {dict(labels)["route"] for name, labels in metrics if name == "headlight_http_probes_total"} == PROBES
        assert not [name for name, _ in metrics if name == "headlight_http_responses_total"]


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text;version=1.0.0", "application/openmetrics-text", "*/*"]
)
@pytest.mark.parametrize(
    ("encodings", "packed"), [("gzip", True), ("deflate, GZIP;q=0.5", True), ("gzip;q=0", False), ("identity", False)]
)
async def test_scrapers_get_the_form_they_take(accept: str, encodings: str, packed: bool) -> None:
    async with calling() as caller:
        await caller.complete()
        answer = await caller.http.get("/metrics", headers={"Accept": accept, "Accept-Encoding": encodings})
        assert ("content-encoding" in answer.headers) == packed
        if accept == "*/*":
            assert answer.headers["content-type"].startswith("text/plain")
            families = list(text_string_to_metric_families(answer.text))
        else:
            assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
            families = list(parse_openmetrics(answer.text))
        assert {"headlight_generation_tokens", "vllm:generation_tokens"} <= {family.name for family in families}


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text;version=x", "application/openmetrics-text;;q", ",;=,"]
)
async def test_what_a_scraper_says_cannot_break_the_metrics(accept: str) -> None:
    async with calling() as caller:
        answer = await caller.http.get("/metrics", headers={"Accept": accept, "Accept-Encoding": accept})
        assert answer.status_code == 200


async def test_tokens_of_steps_are_a_histogram() -> None:
    async with calling() as caller:
        caller.engine.stats = STATS
        metrics = await scrape(caller)
        name = "headlight_step_tokens"
        counts = [metrics[key(f"{name}_bucket", {"le": str(float(bound))})] for bound in STEP_TOKENS]
        assert counts == [2, 2, *[5] * 12]
        assert metrics[key(f"{name}_bucket", {"le": "+Inf"})] == metrics[key(f"{name}_count")] == 9
        assert metrics[key(f"{name}_sum")] == 40_000


async def test_what_runs_here() -> None:
    async with calling() as caller:
        metrics = await scrape(caller)
        (build,) = (dict(labels) for name, labels in metrics if name == "headlight_build_info")
        assert build.pop("version") == "0.1.0"
        assert all(re.match(r"\d+\.\d+\.\d+", build.pop(name)) for name in ("python", "torch"))
        assert build == MODEL | {"backend": "fake", "device": "cpu", "dtype": "float32", "cache_dtype": "float32"}
        shape = {"block_size": str(LIMITS.block_size), "num_gpu_blocks": str(LIMITS.num_blocks)}
        assert metrics[key("headlight_cache_config_info", shape)] == 1


class LoadingClient(FakeClient):
    @property
    def limits(self):
        raise EngineDead("the model is loading")

    @limits.setter
    def limits(self, limits) -> None: ...


async def test_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.service.api.fakes.FakeClient", LoadingClient)
    async with calling() as caller:
        caller.engine.state = EngineHealth("starting", "the model is loading")
        caller.engine.info = caller.engine.pid = None
        metrics = await scrape(caller)
        assert metrics[key("headlight_engine_up")] == 0
        names = {name for name, _ in metrics}
        assert "headlight_build_info" in names
        assert not {name for name in names if "cache_config" in name or "engine_process" in name}


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are read from /proc")
async def test_the_processes_figures() -> None:
    async with calling() as caller:
        metrics = await scrape(caller)
        # The fake engine is this very process.
        own, engines = (
            metrics[(f"{name}", labels)]
            for name, labels in (
                ("process_resident_memory_bytes", frozenset({("process", "0")})),
                key("headlight_engine_process_resident_memory_bytes"),
            )
        )
        assert own == pytest.approx(engines, rel=0.1)
        assert own > 2**20
        assert metrics[key("headlight_engine_process_cpu_seconds_total")] > 0


async def test_what_requests_leave_behind() -> None:
    async with calling() as caller:
        await caller.complete(n=2)
        await caller.chat(max_tokens=3, stream=True)
        await caller.complete(temperature=9)
        caller.engine.failure = Delta(0, [], None, finish_reason="error", error="hung")
        await caller.complete()
        metrics = await scrape(caller)
        for reason, count in {"stop": 2, "length": 1, "abort": 0, "error": 1}.items():
            assert metrics[key("headlight_request_success_total", {"finished_reason": reason})] == count
        for name, count in {
            "time_to_first_token_seconds_count": 3,
            "inter_token_latency_seconds_count": 12 + 12 + 2,
            "request_time_per_output_token_seconds_count": 3,
            "e2e_request_latency_seconds_count": 4,
            "request_queue_time_seconds_sum": 3 * 0.25,
            "request_prefill_time_seconds_sum": 3 * 0.5,
            "request_decode_time_seconds_sum": 3 * 2.0,
            "request_queue_time_seconds_count": 3,
            "request_inference_time_seconds_sum": 3 * 2.5,
            "request_generation_tokens_sum": 13 + 13 + 3,
            "request_max_num_generation_tokens_sum": 13 + 3,
            "request_max_num_generation_tokens_count": 3,
            "request_params_n_sum": 2 + 1 + 1,
            "request_params_n_count": 3,
            "request_params_max_tokens_count": 4,
            "request_prompt_tokens_sum": 3 + 3 + 18 + 3,
        }.items():
            assert metrics[key(f"headlight_{name}")] == count, name
            assert metrics[key(f"vllm:{name}", {"engine": "0"})] == count, name
        for status, count in {"200": 1, "400": 1, "500": 1}.items():
            labels = {"route": "/v1/completions", "method": "POST", "status": status}
            assert metrics[key("headlight_http_responses_total", labels)] == count


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("route", "body"), [("/v1/completions", {"prompt": "hi"}), ("/v1/chat/completions", {"messages": HI})]
)
async def test_who_leaves_counts_as_an_abort(route: str, body: dict[str, Any], stream: bool) -> None:
    async with serving() as server:
        server.engine.running.clear()
        task = asyncio.create_task(server.http.post(route, json=body | {"stream": stream}))
        await server.until(lambda: server.engine.streams)
        task.cancel()
        await server.until(lambda: server.admission.open == 0)
        metrics = await scrape(server)
        assert metrics[key("headlight_request_success_total", {"finished_reason": "abort"})] == 1
        # Headers wait for the first token, so that there is no other status by then.
        labels = {"route": route, "method": "POST", "status": "499"}
        assert metrics[key("headlight_http_responses_total", labels)] == 1


async def test_who_leaves_before_it_has_taken_anything_counts_too() -> None:
    """A chat's stream opens with a chunk of its own, which this client never takes."""
    app, _, engine, admission = build(TEMPLATE, {})
    body = json.dumps({"messages": HI, "stream": True}).encode()
    messages = [{"type": "http.request", "body": body}]
    stuck = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await stuck.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            stuck.set()
            await asyncio.Event().wait()

    headers = [(b"content-type", b"application/json")]
    path = "/v1/chat/completions"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers}
    await asyncio.wait_for(
        app(scope | {"query_string": b"", "root_path": "", "http_version": "1.1"}, receive, send), 10
    )
    assert (engine.streams[0].taken, admission.open) == (1, 0)
    text = app.state.context.metrics.render()[0].decode()
    assert 'headlight_request_success_total{finished_reason="abort",model_name="toy"} 1.0' in text


async def test_what_the_engine_told_before_it_died_counts() -> None:
    async with calling() as caller:
        died = Delta(0, [], None, finish_reason="error", error="hung")
        caller.engine.script = lambda params: iter([Delta(0, [65], None, times=TIMES, cached_tokens=2), died])  # type: ignore[method-assign]
        assert (await caller.complete()).status_code == 500
        metrics = await scrape(caller)
        assert metrics[key("headlight_request_success_total", {"finished_reason": "error"})] == 1
        assert metrics[key("headlight_request_decode_time_seconds_sum")] == 2.0


async def test_labels_are_not_made_by_clients() -> None:
    async with calling() as caller:
        hostile = ("/%22%7D%0A%23%20evil%7Bx=%22", "/a?b=c", "/%00", "/" + "a" * 10_000)
        for path in ("/a", "/v1/models/x", "/v1/models/y", "/v1/models/toy", *hostile):
            await caller.http.get(path)
        for method in ("BREW", "PATCHY", 'A"}'):
            await caller.http.request(method, "/a")
        await caller.complete(model="made up")
        responses = {
            (labels["route"], labels["method"], labels["status"]): value
            for (name, pairs), value in (await scrape(caller)).items()
            if name == "headlight_http_responses_total" and (labels := dict(pairs))
        }
        assert responses == {
            ("unmatched", "GET", "404"): 5,
            ("/v1/models/{name:path}", "GET", "404"): 2,
            ("/v1/models/{name:path}", "GET", "200"): 1,
            ("unmatched", "other", "404"): 3,
            ("/v1/completions", "POST", "404"): 1,
        }


async def test_requests_that_are_turned_away() -> None:
    async with serving(max_running=1, max_waiting=0) as server:
        assert (await server.complete(n=2)).status_code == 400
        assert (await server.complete(max_tokens=100_000)).status_code == 400
        server.engine.state = EngineHealth("starting", "the model is loading")
        assert (await server.complete()).status_code == 503
        server.engine.state = EngineHealth("dead", "it crashed")
        assert (await server.complete(stream=True)).status_code == 503
        server.engine.state = EngineHealth("ready", "")
        with server.admission.admit(1):
            assert (await server.complete(stream=True)).status_code == 429
            assert (await server.complete()).status_code == 429
        server.admission.drain()
        assert (await server.chat()).status_code == 503
        metrics = await scrape(server)
        for reason, count in {"too_long": 1, "unavailable": 2, "queue_full": 2, "draining": 1}.items():
            assert metrics[key("headlight_admission_rejections_total", {"reason": reason})] == count, reason
        assert metrics[key("headlight_e2e_request_latency_seconds_count")] == 0
        assert metrics[key("headlight_request_success_total", {"finished_reason": "error"})] == 0


async def test_an_unexpected_error_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with calling() as caller:
        monkeypatch.setattr(caller.engine, "submit", None)
        assert (await caller.complete()).status_code == 500
        labels = {"route": "/v1/completions", "method": "POST", "status": "500"}
        assert (await scrape(caller))[key("headlight_http_responses_total", labels)] == 1


async def test_the_event_loops_lag_is_watched() -> None:
    async with serving() as server:
        name = key("headlight_event_loop_lag_seconds_count")
        while (await scrape(server))[name] == 0:
            pass
