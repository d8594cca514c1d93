"""When a completion's moments come, and how late a loop is, on clocks that the tests set."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.sampling_params import SamplingParams
from service.engine.messages import EngineRequest, RequestTimes
from service.engine.status import EngineDead
from service.generation import GenerationError, GenerationRequest
from service.observability.loop_lag import INTERVAL_SECONDS, watch_loop
from service.observability.metrics import Metrics
from service.observability.record import RequestRecord, plain_id
from service.observability.timeline import Timeline
from tests.service.api.fakes import FakeClient


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def generation(prompt: int = 5, cached: int = 0, times: RequestTimes = RequestTimes()) -> Any:  # noqa: B008
    request = GenerationRequest(sent=EngineRequest([1] * prompt, SamplingParams(max_tokens=16)))
    return SimpleNamespace(request=request, cached_tokens=cached, times=times)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(FakeClient(), "toy", vllm_names=False)


def values(metrics: Metrics) -> dict[str, float]:
    """What has been observed or counted, by name and by the reason if there is one."""
    return {
        " ".join([sample.name, *filter(None, [sample.labels.get("finished_reason")])]): sample.value
        for family in text_string_to_metric_families(metrics.render()[0].decode())
        for sample in family.samples
        if sample.value
        and "le" not in sample.labels
        and not sample.name.endswith("_created")
        and ("latency" in sample.name or "request_" in sample.name)
    }


def test_the_moments_of_a_completion(metrics: Metrics) -> None:
    clock = Clock()
    record = RequestRecord(method="POST", clock=clock)
    clock.now += 1.0  # Its text is tokenised.
    made = generation(times=RequestTimes(0.5, 1.5, 4.0))
    with Timeline(made, metrics, began=record.began, clock=clock) as timeline:
        for wait, reason in ((2.0, None), (1.0, None), (3.0, "length")):
            clock.now += wait
            timeline.token(reason)
        clock.now += 50.0  # Whatever the client does with it is not the completion's time.
    seen = values(metrics)
    assert (timeline.submitted, timeline.first_token, timeline.last_token) == (101.0, 103.0, 107.0)
    assert seen == {
        "headlight_request_success_total length": 1,
        **{f"headlight_{name}_count": 1 for name in ("e2e_request_latency_seconds", "request_prompt_tokens")},
        **{f"headlight_request_{name}_seconds_count": 1 for name in ("queue_time", "prefill_time", "decode_time")},
        "headlight_request_time_per_output_token_seconds_count": 1,
        "headlight_request_generation_tokens_count": 1,
        "headlight_request_inference_time_seconds_count": 1,
        "headlight_request_inference_time_seconds_sum": 5.5,
        "headlight_request_params_max_tokens_count": 1,
        "headlight_request_params_max_tokens_sum": 16,
        "headlight_inter_token_latency_seconds_count": 2,
        "headlight_inter_token_latency_seconds_sum": 4.0,
        "headlight_request_time_per_output_token_seconds_sum": 2.0,
        "headlight_e2e_request_latency_seconds_sum": 7.0,
        "headlight_request_queue_time_seconds_sum": 0.5,
        "headlight_request_prefill_time_seconds_sum": 1.5,
        "headlight_request_decode_time_seconds_sum": 4.0,
        "headlight_request_prompt_tokens_sum": 5,
        "headlight_request_generation_tokens_sum": 3,
    }


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GenerationError("hung"), "error"),
        (EngineDead("killed"), "error"),
        (ValueError("a bug"), "error"),
        (asyncio.CancelledError(), "abort"),
        (GeneratorExit(), "abort"),
    ],
)
def test_how_a_completion_ends_before_its_end(metrics: Metrics, error: BaseException, reason: str) -> None:
    timeline = Timeline(generation(), metrics, began=100.0, clock=Clock())
    timeline.__enter__().token(None)
    timeline.__exit__(type(error), error, None)
    assert timeline.finish_reason == reason
    seen = values(metrics)
    assert seen[f"headlight_request_success_total {reason}"] == 1
    assert not any("queue" in name or "per_output" in name for name in seen)


def test_a_record_counts_as_an_answers_usage_does(metrics: Metrics) -> None:
    record = RequestRecord(method="POST", n=2)
    for prompt, cached, tokens in ((5, 4, 3), (5, 4, 2), (7, 0, 1), (7, 0, 4)):
        timeline = Timeline(generation(prompt, cached), metrics, began=0.0, clock=Clock())
        for _ in range(tokens):
            timeline.token(None)
        record.timelines.append(timeline)
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (12, 4, 10)


@pytest.mark.parametrize("given", ["a", "7d3c-11ee_x.y:z", "A" * 128])
def test_plain_ids_are_kept(given: str) -> None:
    assert plain_id(given) == given


@pytest.mark.parametrize("given", [None, "", "A" * 129, "a b", "a\n", "é", 'a"', "a\r\nx: y", "<b>", "a,b"])
def test_other_ids_are_dropped(given: str | None) -> None:
    assert plain_id(given) is None


async def test_how_late_the_loop_is() -> None:
    clock, seen = Clock(), []
    lateness = iter([0.0, 0.5, 0.0, -0.01, 2.0])

    async def sleep(seconds: float) -> None:
        late = next(lateness, None)
        if late is None:
            raise asyncio.CancelledError
        clock.now += seconds + late

    with pytest.raises(asyncio.CancelledError):
        await watch_loop(seen.append, clock, sleep)
    assert INTERVAL_SECONDS > 0
    assert seen == pytest.approx([0.0, 0.5, 0.0, 0.0, 2.0])
