import dataclasses
import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from loadtests.figures import Figures, Span, over_time
from loadtests.goals import Goals
from loadtests.report import conclusion, render
from loadtests.scrape import Histogram, Scrape
from loadtests.sse import Answer
from loadtests.summary import Summary, find_capacity, summarise

GOALS = Goals(ttft_p95_seconds=1.0, inter_token_p95_seconds=0.5, error_rate=0.1, goodput_share=0.9)
SETTINGS = {"model": "<b>tiny</b>", "workload": "mix", "shape": "step", "url": "http://127.0.0.1:8000", "unit": "users"}


def answers(start: float, count: int, ttft: float = 0.5, gap: float = 0.1) -> list[Answer]:
    """So many in ten seconds."""
    times = [start + 10 * index / count for index in range(count)]
    return [Answer(t, ttft + 4 * gap, ttft, [gap] * 4, prompt_tokens=10, completion_tokens=5) for t in times]


def run(shape: str = "step", gained: Scrape | None = None, goals: Goals = GOALS) -> tuple[Summary, list[Answer]]:
    """Throughput grows for two stages; at the third there is only more waiting."""
    got = [*answers(0, 20), *answers(10, 40), *answers(20, 41, ttft=3.0, gap=0.2)]
    spans = [Span(0, 10, 1), Span(10, 20, 2), Span(20, 30, 4)]
    return summarise(got, spans, goals, SETTINGS | {"shape": shape}, gained), got


def test_a_step_run_finds_the_knee_and_what_the_goals_allow() -> None:
    summary, _ = run()
    assert [stage.load for stage in summary.stages] == [1, 2, 4]
    assert (summary.knee, summary.capacity) == (1, 1)
    assert summary.passed


def test_other_runs_are_judged_as_a_whole() -> None:
    summary, _ = run("steady")
    assert (summary.knee, summary.capacity, summary.passed) == (None, None, False)
    missed = {verdict.goal for verdict in summary.verdicts if not verdict.met}
    assert missed == {"ttft_p95_seconds", "goodput_share"}


def test_the_warm_up_is_left_out_and_only_compared_with_what_the_server_counted() -> None:
    gained = Scrape({("generation_tokens", ""): 150.0})
    summary = summarise([*answers(-10, 10), *answers(0, 20)], [Span(0, 10, 1)], GOALS, SETTINGS, gained)
    assert summary.total.completion_tokens == 100
    assert summary.server
    assert summary.server.agrees


def test_drift_compares_the_last_stage_with_the_first() -> None:
    summary, _ = run("soak", goals=Goals(drift=1.5))
    assert summary.drift == pytest.approx(2.0)
    assert not summary.passed


def test_a_rate_of_goodput_is_what_the_best_step_reaches() -> None:
    summary, _ = run(goals=dataclasses.replace(GOALS, goodput_per_second=3.5))
    assert summary.passed
    assert summary.capacity == 1
    summary, _ = run(goals=dataclasses.replace(GOALS, goodput_per_second=4.5))
    assert not summary.passed


def test_a_later_stage_that_happens_to_be_good_adds_no_capacity() -> None:
    summary, _ = run()
    stages: list[Figures] = [summary.stages[index] for index in (0, 2, 1)]
    assert find_capacity(stages, GOALS) == 0
    assert find_capacity(stages[1:], GOALS) is None


def test_a_stage_with_too_few_samples_says_nothing_about_capacity() -> None:
    spans = [Span(0, 10, 1), Span(10, 20, 2), Span(20, 30, 4)]
    few = [*answers(0, 5), *answers(10, 40), *answers(20, 5)]
    summary = summarise(few, spans, GOALS, SETTINGS, None)
    assert (summary.capacity, summary.passed) == (1, None)
    assert "too few  ttft_p95_seconds: 0.5 of 5 samples (goal 1)" in conclusion(summary)


def test_the_servers_side_is_there_if_its_metrics_are() -> None:
    assert run()[0].server is None
    assert run(gained=Scrape())[0].server is None
    gained = Scrape(
        {("generation_tokens", ""): 500.0}, {"time_to_first_token_seconds": Histogram({1.0: 101}, 190.0, 101)}
    )
    server = run(gained=gained)[0].server
    assert server is not None
    assert not server.agrees
    assert {row.figure for row in server.comparisons if row.agrees} == {
        "generated tokens",
        "time to first token, median",
    }


def test_the_json_says_it_all() -> None:
    summary, _ = run()
    read = json.loads(json.dumps(summary.as_json(), allow_nan=False))
    assert read["total"]["completion_tokens"] == 505
    assert read["verdicts"][0] == {"goal": "ttft_p95_seconds", "limit": 1.0, "value": 0.5, "samples": 20, "met": True}


class Page(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text = ""
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("count", [0, 1])
def test_the_report_needs_nothing_else_and_escapes_what_it_shows(count: int) -> None:
    summary, got = run()
    if not count:
        got = [Answer(1.0, 1.0, error="<i>gone</i>")]
        summary = summarise(got, [Span(0, 10, 1)], GOALS, SETTINGS, None)
    html = render(summary, over_time(got, Span(0, 30, 0)), got)
    page = Page()
    page.feed(html)
    assert page.links == []
    assert not {"script", "link", "b", "i"} & set(page.tags)
    assert "<b>tiny</b>" in page.text
    assert "nan" not in html
    charts = ["<svg" + part.split("</svg>")[0] + "</svg>" for part in html.split("<svg")[1:]]
    titles = [ElementTree.fromstring(chart).get("aria-label") for chart in charts]
    assert "Time to first token over time" in titles
    assert "Throughput against concurrency" in titles
    assert "Distribution of the time to first token" in titles


def test_the_terminal_is_told_the_verdict() -> None:
    lines = "\n".join(conclusion(run("steady")[0]))
    assert "MISSED   ttft_p95_seconds: 3 of 101 samples (goal 1)" in lines
    assert "met      error_rate: 0 of 101 samples (goal 0.1)" in lines
    assert "goals hold up to 2 users" in "\n".join(conclusion(run()[0]))
