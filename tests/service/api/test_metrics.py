"""What /metrics says, read by Prometheus's own parser."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from service.engine.messages import Delta, EngineStats
from tests.service.api.fakes import Caller, calling

STATS = EngineStats(
    running=3, waiting=2, blocks_used=16, blocks_total=64, steps=9, prompt_tokens=100, generated_tokens=50,
    prefix_queries=120, prefix_hits=20, preemptions=1, forward_seconds=1.5,
)  # fmt: skip


async def scrape(caller: Caller) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = (await caller.http.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, labels: Mapping[str, str] | None = None) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset((labels or {}).items())


async def test_the_engines_counts() -> None:
    async with calling() as caller:
        caller.engine.stats = STATS
        caller.engine.restarts = 2
        metrics = await scrape(caller)
        for name, value in {
            "headlight_requests_running": 3,
            "headlight_requests_waiting": 2,
            "headlight_kv_cache_usage_ratio": 0.25,
            "headlight_prompt_tokens_total": 100,
            "headlight_generation_tokens_total": 50,
            "headlight_prefix_cache_queries_total": 120,
            "headlight_prefix_cache_hits_total": 20,
            "headlight_preemptions_total": 1,
            "headlight_steps_total": 9,
            "headlight_forward_seconds_total": 1.5,
            "headlight_engine_restarts_total": 2,
        }.items():
            assert metrics[key(name)] == value
        for name, value in {"num_requests_running": 3, "num_requests_waiting": 2, "kv_cache_usage_perc": 0.25}.items():
            assert metrics[key(f"vllm:{name}", {"model_name": "toy"})] == value


async def test_what_requests_leave_behind() -> None:
    async with calling() as caller:
        await caller.complete(n=2)
        await caller.chat(max_tokens=3, stream=True)
        await caller.complete(temperature=9)
        caller.engine.failure = Delta(0, [], None, finish_reason="error", error="hung")
        await caller.complete()
        metrics = await scrape(caller)
        ended = {"stop": 2, "length": 1, "abort": 0, "error": 1}
        for reason, count in ended.items():
            assert metrics[key("headlight_requests_total", {"finish_reason": reason})] == count
        assert metrics[key("headlight_time_to_first_token_seconds_count")] == 3
        assert metrics[key("headlight_inter_token_latency_seconds_count")] == 12 + 12 + 2
        assert metrics[key("headlight_e2e_request_latency_seconds_count")] == 4
        assert metrics[key("headlight_request_generation_tokens_sum")] == 13 + 13 + 3
        assert metrics[key("headlight_request_prompt_tokens_sum")] == 3 + 3 + 18 + 3
        for status, count in {"200": 1, "400": 1, "500": 1}.items():
            labels = {"route": "/v1/completions", "method": "POST", "status": status}
            assert metrics[key("headlight_http_responses_total", labels)] == count


async def test_labels_are_not_made_by_clients() -> None:
    async with calling() as caller:
        for path in ("/a", "/b", "/v1/models/x", "/v1/models/y", "/v1/models/toy"):
            await caller.http.get(path)
        await caller.http.request("BREW", "/a")
        responses = {
            (labels["route"], labels["method"], labels["status"]): value
            for (name, pairs), value in (await scrape(caller)).items()
            if name == "headlight_http_responses_total" and (labels := dict(pairs))
        }
        assert responses == {
            ("unmatched", "GET", "404"): 2,
            ("/v1/models/{name:path}", "GET", "404"): 2,
            ("/v1/models/{name:path}", "GET", "200"): 1,
            ("unmatched", "other", "404"): 1,
        }


async def test_a_refused_request_counts_as_none() -> None:
    async with calling(max_running=1, max_waiting=0) as caller:
        assert (await caller.complete(n=2)).status_code == 400
        metrics = await scrape(caller)
        assert metrics[key("headlight_e2e_request_latency_seconds_count")] == 0
