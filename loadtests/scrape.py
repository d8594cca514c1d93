"""The server's own figures: the increase of its Prometheus metrics during a run, compared with the clients' figures.

Knows vLLM's names of these metrics, which Headlight uses as well, with its own prefix. A server without these metrics
is not compared.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from loadtests.figures import Figures

PREFIXES = ("headlight_", "vllm:")
TOLERANCE = 0.05
"""The largest difference of two figures that agree, as a share of the server's."""
TRANSIT_SECONDS = 0.05
"""The difference that two latencies may always have: connecting, and a load generator that is busy with other users."""


@dataclass(slots=True)
class Histogram:
    """A Prometheus histogram: counts of observations in buckets."""

    buckets: dict[float, float] = field(default_factory=lambda: defaultdict(float))
    """Upper bound -> number of observations up to it."""
    sum: float = 0.0
    count: float = 0.0

    def since(self, before: "Histogram") -> "Histogram":
        """The histogram of the observations after `before`."""
        buckets = {bound: count - before.buckets.get(bound, 0.0) for bound, count in self.buckets.items()}
        return Histogram(buckets, self.sum - before.sum, self.count - before.count)

    def quantile(self, share: float) -> tuple[float, float]:
        """The bounds of the bucket that the quantile lies in: above the first, up to the second."""
        below = 0.0
        for bound in sorted(self.buckets):
            if self.buckets[bound] >= share * self.count:
                return below, bound
            below = bound
        return below, float("inf")


@dataclass(slots=True)
class Scrape:
    """One reading of the metrics, without their prefix and summed over labels."""

    counters: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    """(name, finish reason) -> value; the reason is empty for metrics without one."""
    histograms: dict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    build: dict[str, str] = field(default_factory=dict)
    """The labels of the metric build_info."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The metrics in a Prometheus text; None if their names are unknown. Raises ValueError for other texts."""
        families = {family.name: family for family in text_string_to_metric_families(text)}
        prefix = next((prefix for prefix in PREFIXES if f"{prefix}generation_tokens" in families), None)
        if prefix is None:
            return None
        scrape = cls()
        for name, family in families.items():
            for sample in family.samples if name.startswith(prefix) else ():
                scrape._add(
                    name.removeprefix(prefix), sample.name.removeprefix(f"{name}_"), sample.labels, sample.value
                )
        return scrape

    def _add(self, name: str, suffix: str, labels: dict[str, str], value: float) -> None:
        match suffix:
            case "total":
                self.counters[name, labels.get("finished_reason", "")] += value
            case "bucket":
                self.histograms[name].buckets[float(labels["le"])] += value
            case "sum":
                self.histograms[name].sum += value
            case "count":
                self.histograms[name].count += value
            case _ if name == "build_info":
                self.build = labels

    def since(self, before: "Scrape") -> "Scrape":
        """The increase of every metric since `before`."""
        counters = {key: value - before.counters.get(key, 0.0) for key, value in self.counters.items()}
        empty = Histogram()
        histograms = {name: h.since(before.histograms.get(name, empty)) for name, h in self.histograms.items()}
        return Scrape(counters, histograms, self.build)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A figure of the clients and the same one of the server, a pair of bounds if it is a quantile of a histogram."""

    figure: str
    client: float
    server: float | tuple[float, float | None]
    agrees: bool


def compare(server: Scrape, clients: Figures) -> list[Comparison]:
    """The comparisons for all figures that both the clients and the server have."""
    return [*_counts(server, clients), *_latencies(server, clients)]


def _counts(server: Scrape, clients: Figures) -> Iterator[Comparison]:
    histogram = server.histograms.get("request_prompt_tokens")
    succeeded = [server.counters.get(("request_success", reason)) for reason in ("stop", "length")]
    known = (
        ("requests", clients.complete, succeeded),
        ("prompt tokens", clients.prompt_tokens, [histogram.sum if histogram else None]),
        ("generated tokens", clients.completion_tokens, [server.counters.get(("generation_tokens", ""))]),
    )
    for name, ours, theirs in known:
        numbers = [number for number in theirs if number is not None]
        if numbers:
            yield _close(name, ours, sum(numbers))


def _latencies(server: Scrape, clients: Figures) -> Iterator[Comparison]:
    known = (
        ("time to first token", clients.ttft, "time_to_first_token_seconds"),
        ("inter-token latency", clients.inter_token, "inter_token_latency_seconds"),
        ("end-to-end latency", clients.end_to_end, "e2e_request_latency_seconds"),
    )
    for name, ours, metric in known:
        theirs = server.histograms.get(metric)
        if ours is None or theirs is None or not theirs.count:
            continue
        yield _close(f"{name}, mean", ours.mean, theirs.sum / theirs.count, TRANSIT_SECONDS)
        for label, share, value in (("median", 0.5, ours.p50), ("95th percentile", 0.95, ours.p95)):
            low, high = theirs.quantile(share)
            inside = low - _slack(low, TRANSIT_SECONDS) <= value <= high + _slack(high, TRANSIT_SECONDS)
            yield Comparison(f"{name}, {label}", value, (low, high if math.isfinite(high) else None), inside)


def _close(name: str, ours: float, theirs: float, least: float = 0.0) -> Comparison:
    return Comparison(name, ours, theirs, abs(ours - theirs) <= _slack(theirs, least))


def _slack(value: float, least: float) -> float:
    """How far from the server's value, in its own unit, another may lie: at least `least`."""
    return max(TOLERANCE * abs(value), least)
