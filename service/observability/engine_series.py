"""The engine's state as Prometheus metrics: made at every scrape from its latest report.

Every process with a client of the engine makes the same ones. Knows nothing of requests over HTTP.
"""

import platform
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from model.limits import RunnerInfo
from service.engine.interface import EngineClient
from service.engine.messages import STEP_TOKENS, EngineStats
from service.engine.status import EngineDead
from service.versions import version_of

_UNKNOWN = RunnerInfo(device="", dtype="", cache_dtype="", backend="")
"""Labels while no model was loaded: Prometheus takes an empty label for a missing one."""


class EngineCollector(Collector):
    """The engine client's figures as metrics."""

    def __init__(self, client: EngineClient, model_name: str) -> None:
        self._client = client
        self._model = {"model_name": model_name}
        self._process = ProcessCollector("headlight_engine", pid=lambda: client.pid or "none", registry=None)

    def collect(self) -> Iterator[Metric]:
        stats = self._client.stats
        yield from self._state(stats)
        yield from self._totals(stats)
        yield self._step_tokens(stats)
        yield from self._facts()
        for family in self._process.collect():
            for sample in family.samples:
                sample.labels.update(self._model)
            yield family

    def _state(self, stats: EngineStats) -> Iterator[Metric]:
        use = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
        for name, help, value in (
            ("num_requests_running", "Completions in the batch.", stats.running),
            ("num_requests_waiting", "Completions in the queue.", stats.waiting),
            ("kv_cache_usage_perc", "Share of KV cache blocks in use, 0 to 1.", use),
        ):
            yield self._gauge(f"headlight_{name}", help, value)
        ready = self._client.health().state == "ready"
        yield self._gauge("headlight_engine_up", "Whether the engine takes requests.", ready)

    def _totals(self, stats: EngineStats) -> Iterator[Metric]:
        totals = stats.totals
        for name, help, total in (
            ("prompt_tokens", "Prompt tokens taken in, computed or found in the prefix cache.", totals.prompt_tokens),
            ("prompt_tokens_cached", "Prompt tokens found in the prefix cache.", totals.cached_prompt_tokens),
            ("generation_tokens", "Tokens generated.", totals.generated_tokens),
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", totals.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found at the look-up.", totals.prefix_hits),
            ("num_preemptions", "Times that a completion gave up its blocks for an older one.", totals.preemptions),
            ("drafts", "Times that tokens to come were guessed for a completion.", totals.drafts),
            ("drafted_tokens", "Guesses of tokens to come that were computed.", totals.drafted_tokens),
            ("accepted_tokens", "Guesses among them that were right.", totals.accepted_tokens),
            ("kv_event_batches", "Batches of the prefix cache's events.", totals.event_batches),
            (
                "kv_event_batches_dropped",
                "Batches among them that were dropped before any subscriber.",
                totals.dropped_event_batches,
            ),
            ("steps", "Steps of the engine.", totals.steps),
            ("engine_restarts", "Times that the engine died and was started again.", self._client.restarts),
        ):
            family = CounterMetricFamily(f"headlight_{name}", help, labels=[*self._model])
            family.add_metric([*self._model.values()], total)
            yield family
        seconds = CounterMetricFamily(
            "headlight_step_seconds",
            "Time spent on parts of steps; on a GPU, forward and sample pass beside the others. Where draws are part "
            "of the forward pass, sample leaves them out.",
            labels=[*self._model, "phase"],
        )
        for phase in ("schedule", "forward", "sample", "deliver"):
            seconds.add_metric([*self._model.values(), phase], getattr(stats, f"{phase}_seconds"))
        yield seconds

    def _step_tokens(self, stats: EngineStats) -> Metric:
        bounds = [*(str(float(bound)) for bound in STEP_TOKENS), "+Inf"]
        family = HistogramMetricFamily("headlight_step_tokens", "Tokens that a step computes.", labels=[*self._model])
        buckets = list(zip(bounds, accumulate(stats.totals.step_tokens), strict=True))
        family.add_metric([*self._model.values()], buckets, stats.totals.computed_tokens)
        return family

    def _facts(self) -> Iterator[Metric]:
        info = self._client.info or _UNKNOWN
        yield self._gauge(
            "headlight_build_info",
            "Versions and the engine's choices, which are empty until it has loaded a model.",
            1,
            version=version_of("headlight"),
            python=platform.python_version(),
            torch=version_of("torch"),
            backend=info.backend,
            device=info.device,
            dtype=info.dtype,
            cache_dtype=info.cache_dtype,
        )
        try:
            limits = self._client.limits
        except EngineDead:
            return
        yield self._gauge(
            "headlight_cache_config_info",
            "The shape of the KV cache.",
            1,
            block_size=str(limits.block_size),
            num_gpu_blocks=str(limits.num_blocks),
        )

    def _gauge(self, name: str, help: str, value: float, **labels: str) -> GaugeMetricFamily:
        labels = self._model | labels
        family = GaugeMetricFamily(name, help, labels=[*labels])
        family.add_metric([*labels.values()], value)
        return family
