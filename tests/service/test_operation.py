"""A real server as its operators see it: metrics that agree with what clients were told, and logs."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.observability.vllm_names import VLLM_NAMES
from tests.service.servers import PATIENCE, get, serving, wait_until

SECRET = "the purple armadillo"
FLAGS = ("--log-format", "json", "--log-level", "debug", "--block-size", "16")

JUSTIFIED = {
    f"vllm:{name}{suffix} {fault}"
    for names in VLLM_NAMES.values()
    for name in names
    for suffix in ("", "_total")
    for fault in ("metric names should not contain ':'", 'non-counter metrics should not have "_total" suffix')
}
"""What promtool finds fault with in names that are not ours to choose."""


class Scrape:
    """One exposition."""

    def __init__(self, url: str) -> None:
        answered, self.text = get(f"{url}/metrics")
        assert answered == 200
        self._samples = [sample for family in text_string_to_metric_families(self.text) for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name that have these labels."""
        return sum(
            sample.value for sample in self._samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str) -> dict[str, str]:
        (labels,) = (sample.labels for sample in self._samples if sample.name == name)
        return labels


Story = tuple[list[dict[str, Any]], Scrape, list[str]]


@pytest.fixture(scope="module")
def story(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """What the answers said of their usage, what was scraped after them, and all that the server wrote."""
    log = tmp_path_factory.mktemp("operation") / "log"
    with serving(*FLAGS, log=log) as (url, process):
        usages = [ask(url, **fields) for fields in REQUESTS]
        assert httpx.post(f"{url}/v1/completions", json={"prompt": SECRET, "temperature": 9}).status_code == 400
        # The engine's last report may be on its way while the answer is.
        wait_until(lambda: Scrape(url)("headlight_num_requests_running") == 0)
        scrape = Scrape(url)
    assert process.returncode == 0
    return usages, scrape, log.read_text().splitlines()


LONG = f"Once upon a time, {SECRET} lived in a house by the sea, and every morning it walked to the harbour."
REQUESTS: list[dict[str, Any]] = [
    {"prompt": LONG, "max_tokens": 12},
    {"prompt": LONG, "max_tokens": 9, "stream": True},
    {"prompt": "One, two, three,", "max_tokens": 1},
    {"messages": [{"role": "user", "content": f"Say {SECRET}."}], "max_tokens": 16, "stream": True},
]


def ask(url: str, **fields: Any) -> dict[str, Any]:
    """Send a request; the usage of its answer."""
    route = "chat/completions" if "messages" in fields else "completions"
    body = {"temperature": 0, "ignore_eos": True} | fields
    if not fields.get("stream"):
        usage: dict[str, Any] = httpx.post(f"{url}/v1/{route}", json=body, timeout=PATIENCE).json()["usage"]
        return usage
    body["stream_options"] = {"include_usage": True}
    text = httpx.post(f"{url}/v1/{route}", json=body, timeout=PATIENCE).text
    last = json.loads(text.split("\n\n")[-3].removeprefix("data: "))
    return dict(last["usage"])


def test_metrics_are_what_the_answers_said(story: Story) -> None:
    usages, scrape, _ = story
    prompts, completions = (sum(usage[f"{kind}_tokens"] for usage in usages) for kind in ("prompt", "completion"))
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert completions == 12 + 9 + 1 + 16
    assert cached >= 16
    for name, expected in {
        "headlight_prompt_tokens_total": prompts,
        "headlight_prompt_tokens_cached_total": cached,
        "headlight_prefix_cache_queries_total": prompts,
        "headlight_prefix_cache_hits_total": cached,
        "headlight_generation_tokens_total": completions,
        "headlight_request_prompt_tokens_sum": prompts,
        "headlight_request_generation_tokens_sum": completions,
        "headlight_request_success_total": 4,
        "headlight_time_to_first_token_seconds_count": 4,
        "headlight_inter_token_latency_seconds_count": completions - 4,
        "headlight_request_time_per_output_token_seconds_count": 3,
        "headlight_e2e_request_latency_seconds_count": 4,
        "headlight_request_queue_time_seconds_count": 4,
        "headlight_request_prefill_time_seconds_count": 4,
        "headlight_request_decode_time_seconds_count": 4,
        "headlight_kv_cache_usage_perc": 0,
        "headlight_engine_up": 1,
        "headlight_engine_restarts_total": 0,
        "headlight_admission_rejections_total": 0,
    }.items():
        assert scrape(name) == expected, name
    assert scrape("headlight_request_success_total", finished_reason="length") == 4
    # One request at a time: a step for each token, and each token computed once but for the last of each request.
    assert scrape("headlight_steps_total") == completions == scrape("headlight_step_tokens_count")
    assert scrape("headlight_step_tokens_sum") == prompts - cached + completions - 4
    responses = {("/v1/completions", "200"): 3, ("/v1/chat/completions", "200"): 1, ("/v1/completions", "400"): 1}
    for (route, status), count in responses.items():
        assert scrape("headlight_http_responses_total", route=route, status=status, method="POST") == count


def test_times_add_up(story: Story) -> None:
    _, scrape, _ = story
    phases = [scrape(f"headlight_request_{phase}_time_seconds_sum") for phase in ("queue", "prefill", "decode")]
    whole = scrape("headlight_e2e_request_latency_seconds_sum")
    assert 0 < sum(phases) < whole
    assert scrape("headlight_time_to_first_token_seconds_sum") > phases[0] + phases[1]
    steps = {
        phase: scrape("headlight_step_seconds_total", phase=phase)
        for phase in ("schedule", "forward", "sample", "deliver")
    }
    assert all(seconds > 0 for seconds in steps.values())
    assert steps["forward"] == max(steps.values())
    assert sum(steps.values()) < whole


def test_what_runs_here(story: Story) -> None:
    _, scrape, _ = story
    build = scrape.labels("headlight_build_info")
    assert (build["device"], build["dtype"]) == ("cpu", "float32")
    assert build["backend"].startswith("cpu")
    assert scrape.labels("headlight_cache_config_info")["block_size"] == "16"
    for process in ("process", "headlight_engine_process"):
        assert scrape(f"{process}_resident_memory_bytes") > 2**24
        assert scrape(f"{process}_cpu_seconds_total") > 0
    # The engine has the model.
    assert scrape("headlight_engine_process_resident_memory_bytes") > scrape("process_resident_memory_bytes")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of the package prometheus, is not on PATH")
def test_promtool_has_no_complaint(story: Story) -> None:
    _, scrape, _ = story
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape.text, capture_output=True, text=True, timeout=60, check=False
    )
    assert set((check.stdout + check.stderr).splitlines()) <= JUSTIFIED


def test_every_line_of_the_log_is_json_and_none_has_a_prompt(
    story: Story,
) -> None:
    usages, _, output = story
    entries = [json.loads(line) for line in output]
    assert {entry["process"] for entry in entries} >= {"api"}
    requests = [entry for entry in entries if str(entry.get("route")).startswith("/v1/") and entry["level"] == "info"]
    assert [entry["status"] for entry in requests] == [200, 200, 200, 200, 400]
    for usage, entry in zip(usages, requests[:4], strict=True):
        assert [entry["prompt_tokens"], entry["completion_tokens"]] == [
            usage["prompt_tokens"],
            usage["completion_tokens"],
        ]
        assert entry["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
        assert entry["queue_seconds"] + entry["prefill_seconds"] < entry["first_token_seconds"]
        assert entry["first_token_seconds"] + entry["decode_seconds"] < 1.5 * entry["duration_seconds"]
    assert not [line for line in output if "armadillo" in line]
