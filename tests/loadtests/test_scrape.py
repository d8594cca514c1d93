"""The clients' figures beside a server's metrics, as prometheus_client writes them."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from loadtests.figures import Span, measure
from loadtests.goals import Goals
from loadtests.scrape import Comparison, Scrape, compare
from loadtests.sse import Answer


class FakeMetrics:
    """Some series of the server's, under a prefix."""

    def __init__(self, prefix: str) -> None:
        self.registry = CollectorRegistry()
        labels = ["model_name"]
        Gauge(f"{prefix}num_requests_running", "", labels, registry=self.registry).labels("m").set(1)
        self.success = Counter(f"{prefix}request_success", "", [*labels, "finished_reason"], registry=self.registry)
        self.tokens = Counter(f"{prefix}generation_tokens", "", labels, registry=self.registry)
        self.prompts = self._histogram(f"{prefix}request_prompt_tokens", (10.0, 100.0))
        self.ttft = self._histogram(f"{prefix}time_to_first_token_seconds", (0.5, 1.0, 2.0))

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, "", ["model_name"], buckets=buckets, registry=self.registry)

    def serve(self, ttft: float, prompt: int = 20, tokens: int = 5, reason: str = "length") -> None:
        self.success.labels("m", reason).inc()
        self.tokens.labels("m").inc(tokens)
        self.prompts.labels("m").observe(prompt)
        self.ttft.labels("m").observe(ttft)

    def scrape(self) -> Scrape:
        scrape = Scrape.parse(generate_latest(self.registry).decode())
        assert scrape is not None
        return scrape


def comparisons(metrics: FakeMetrics, before: Scrape, *ttfts: float) -> dict[str, Comparison]:
    answers = [Answer(1.0, 3.0, ttft, [0.1] * 4, prompt_tokens=20, completion_tokens=5) for ttft in ttfts]
    figures = measure(answers, Span(0.0, 10.0, 1), Goals())
    return {row.figure: row for row in compare(metrics.scrape().since(before), figures)}


@pytest.mark.parametrize("prefix", ["headlight_", "vllm:"])
def test_only_what_happened_between_two_scrapes_counts(prefix: str) -> None:
    metrics = FakeMetrics(prefix)
    metrics.serve(1.7)
    before = metrics.scrape()
    for ttft, reason in ((0.7, "length"), (0.8, "stop"), (1.2, "abort")):
        metrics.serve(ttft, reason=reason)
    rows = comparisons(metrics, before, 0.7, 0.8, 1.2)
    assert (rows["requests"].server, rows["requests"].agrees) == (2, False)
    assert (rows["prompt tokens"].server, rows["prompt tokens"].agrees) == (60, True)
    assert (rows["generated tokens"].server, rows["generated tokens"].agrees) == (15, True)
    assert rows["time to first token, mean"].agrees
    assert rows["time to first token, median"].server == (0.5, 1.0)
    assert rows["time to first token, 95th percentile"].server == (1.0, 2.0)
    assert "inter-token latency, mean" not in rows


def test_more_than_five_percent_apart_is_seen() -> None:
    metrics = FakeMetrics("headlight_")
    before = metrics.scrape()
    metrics.serve(0.7)
    rows = comparisons(metrics, before, 0.76)
    assert not rows["time to first token, mean"].agrees
    assert rows["time to first token, median"].agrees
    assert not comparisons(metrics, before, 1.06)["time to first token, median"].agrees
    assert not comparisons(metrics, before, 0.7, 0.7)["requests"].agrees


def test_short_latencies_may_differ_by_what_the_way_takes() -> None:
    metrics = FakeMetrics("headlight_")
    before = metrics.scrape()
    metrics.serve(0.1)
    assert comparisons(metrics, before, 0.14)["time to first token, mean"].agrees
    assert not comparisons(metrics, before, 0.16)["time to first token, mean"].agrees


def test_beyond_the_last_bucket_there_is_no_bound() -> None:
    metrics = FakeMetrics("headlight_")
    before = metrics.scrape()
    metrics.serve(5.0)
    row = comparisons(metrics, before, 5.0)["time to first token, median"]
    assert (row.server, row.agrees) == ((2.0, None), True)


def test_metrics_of_others_are_none() -> None:
    assert Scrape.parse("# TYPE up gauge\nup 1\n") is None
    assert Scrape.parse("") is None
    with pytest.raises(ValueError, match="not found"):
        Scrape.parse("<html>not found</html>")
