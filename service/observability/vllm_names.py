"""Our series once more under vLLM's names, for dashboards, autoscalers and routers that look for these."""

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

PREFIX = "vllm:"
VLLM_NAMES: dict[str, tuple[str, ...]] = {
    name: (name,)
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "cache_config_info",
        "prompt_tokens",
        "prompt_tokens_cached",
        "generation_tokens",
        "num_preemptions",
        "request_success",
        "admission_rejections",
        "time_to_first_token_seconds",
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_inference_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_max_num_generation_tokens",
        "request_params_n",
        "request_params_max_tokens",
    )
} | {
    "step_tokens": ("iteration_tokens_total",),
    "drafted_tokens": ("spec_decode_num_draft_tokens",),
    "accepted_tokens": ("spec_decode_num_accepted_tokens",),
    # The second names are those of vLLM until 0.10, which dashboards in use still ask for.
    "kv_cache_usage_perc": ("kv_cache_usage_perc", "gpu_cache_usage_perc"),
    "prefix_cache_queries": ("prefix_cache_queries", "gpu_prefix_cache_queries"),
    "prefix_cache_hits": ("prefix_cache_hits", "gpu_prefix_cache_hits"),
    "inter_token_latency_seconds": ("inter_token_latency_seconds", "time_per_output_token_seconds"),
}
"""vLLM's names of series by our names, without prefixes and without the _total of counters."""

_ENGINE = {"engine": "0"}
"""The label that vLLM's series have beside model_name: the number of the engine, of which a server has one."""


def vllm_families(family: Metric) -> Iterator[Metric]:
    """The same metric under each of vLLM's names for it, if vLLM has any."""
    for name in VLLM_NAMES.get(family.name.removeprefix("headlight_"), ()):
        same = Metric(PREFIX + name, family.documentation, family.type)
        same.samples = [
            sample._replace(name=same.name + sample.name.removeprefix(family.name), labels=sample.labels | _ENGINE)
            for sample in family.samples
        ]
        yield same


class WithVllmNames(Collector):
    """The metrics of a collector, and behind each the same under vLLM's names."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterator[Metric]:
        for family in self._collector.collect():
            yield family
            yield from vllm_families(family)
