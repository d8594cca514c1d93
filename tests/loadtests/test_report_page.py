"""The report in a real browser, at the widths of a desktop and of a phone; screenshots are the tests' output.

They lie in build/report-screenshots.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtests.figures import Span, over_time
from loadtests.goals import Goals
from loadtests.report import render
from loadtests.scrape import Histogram, Scrape
from loadtests.sse import Answer
from loadtests.summary import summarise
from loadtests.versus import Results, compare
from loadtests.versus import render as versus
from tests.service.page.browser import MISSING, Browser, browsing

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
SCREENSHOTS = Path("build/report-screenshots")
GOALS = Goals(ttft_p95_seconds=5.0, inter_token_p95_seconds=0.25, error_rate=0.01, goodput_share=0.9)
SETTINGS = {
    "url": "https://a-server-with-quite-a-long-name.some-department.example.com/models/a",
    "model": "organisation/a-model-with-a-long-name-7B-instruct",
    "workload": "mix",
    "shape": "step",
    "unit": "users",
    "load_generator": "Locust 2.47.0, Python 3.11.7, 2 CPUs",
}


def answers(start: float, seconds: float, count: int, load: float) -> list[Answer]:
    """Slower, the more load there is; some fail, some are abandoned."""
    rng, got = random.Random(count), []
    for index in range(count):
        began, ttft = start + seconds * index / count, rng.lognormvariate(-2, 0.4) * load
        gaps = [rng.lognormvariate(-3, 0.3) * load for _ in range(rng.randint(2, 40))]
        whole = ttft + sum(gaps)
        match index % 20:
            case 7 if load > 8:
                got.append(Answer(began, 2.0, error="status 503: the queue is full, and has been for some time now"))
            case 9 if load > 8:
                got.append(Answer(began, whole, ttft, gaps, abandoned=True))
            case _:
                got.append(Answer(began, whole, ttft, gaps, 160, 32, len(gaps) + 1))
    return got


def report(spans: list[Span], got: list[Answer], **settings: Any) -> str:
    histogram = Histogram({0.1: 20, 0.5: 100, float("inf"): 120}, 40.0, 120)
    gained = Scrape({("generation_tokens", ""): 3000.0}, {"time_to_first_token_seconds": histogram}, {"version": "1.0"})
    summary = summarise(got, spans, GOALS, SETTINGS | settings, gained)
    return render(summary, over_time(got, Span(spans[0].start, spans[-1].end, 0)), got)


def a_sweep() -> str:
    spans = [Span(1e9 + 60 * index, 1e9 + 60 * (index + 1), 2.0**index) for index in range(6)]
    return report(
        spans, [one for span in spans for one in answers(span.start, 60, int(20 + 10 * span.load), span.load)]
    )


def a_short_run() -> str:
    return report([Span(1e9, 1e9 + 32, 2)], answers(1e9, 30, 7, 1), shape="steady")


def nothing() -> str:
    return report([Span(1e9, 1e9 + 30, 2)], [], shape="steady")


def a_long_run() -> str:
    return report([Span(1e9, 1e9 + 3600, 4)], answers(1e9, 3590, 1500, 4), shape="steady")


def two_runs() -> str:
    totals = {"requests_per_second": 1.25, "tokens_per_second": 20.5, "error_rate": 0.0}
    both = []
    for load in (1, 2):
        requests = [
            {"ttft": one.ttft, "seconds": one.seconds, "seconds_per_token": one.seconds_per_token, "abandoned": False}
            for one in answers(1e9, 60, 60, load)
        ]
        both.append(Results(SETTINGS | {"scale": load}, totals, requests))
    return versus(*both, compare(*both))


REPORTS = {"sweep": a_sweep, "short": a_short_run, "nothing": nothing, "long": a_long_run, "versus": two_runs}


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("name", REPORTS)
def test_everything_is_on_the_page_and_nothing_on_anything_else(
    name: str, width: int, window: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(REPORTS[name]())
    window.open(path.as_uri(), width=width)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    height = window.run("return document.documentElement.scrollHeight")
    window.open(path.as_uri(), width=width, height=height + 20)
    window.driver.save_screenshot(str(SCREENSHOTS / f"{name}-{width}.png"))
    assert window.run("return document.documentElement.scrollWidth") <= width
    # What is wider than the page is in a box that scrolls.
    assert window.run(OFF_THE_PAGE) == []
    scrolling = window.run(SCROLLING)
    assert len(scrolling) == (name in ("sweep", "versus") and width == 375)
    assert window.run(TOUCHING, "figure, h1, h2, .scroll, p") == []
    assert window.run(TOUCHING, "svg, .legend, figcaption") == []
    assert window.run(TOUCHING, "svg text") == []
    assert window.run(OUTSIDE) == []


OFF_THE_PAGE = """
return [...document.querySelectorAll("body *")].filter(one => !one.closest(".scroll > *"))
  .filter(one => { const box = one.getBoundingClientRect(); return box.left < 0 || box.right > innerWidth + 0.5 })
  .map(one => one.outerHTML.slice(0, 200))
"""
SCROLLING = """
return [...document.querySelectorAll(".scroll")].filter(box => box.scrollWidth > box.clientWidth)
  .map(box => box.innerText)
"""
TOUCHING = """
const boxes = [...document.querySelectorAll(arguments[0])].map(one => [one, one.getBoundingClientRect()])
const overlap = (a, b, from, to) => a[from] < b[to] - 0.5 && b[from] < a[to] - 0.5
const touch = (a, b) => overlap(a, b, "left", "right") && overlap(a, b, "top", "bottom")
return boxes.flatMap(([one, box], index) => boxes.slice(index + 1)
  .filter(([other, another]) => !one.contains(other) && touch(box, another))
  .map(([other]) => one.textContent.slice(0, 80) + " | " + other.textContent.slice(0, 80)))
"""
OUTSIDE = """
return [...document.querySelectorAll("svg text, svg circle, svg rect, svg polyline")].filter(one => {
  const box = one.getBoundingClientRect(), plot = one.closest("svg").getBoundingClientRect()
  return box.left < plot.left - 1 || box.right > plot.right + 1
    || box.top < plot.top - 1 || box.bottom > plot.bottom + 1
}).map(one => one.outerHTML.slice(0, 200))
"""


def test_empty_plots_say_so(window: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(nothing())
    window.open(path.as_uri())
    texts = [one.text for one in window.all("svg .empty")]
    assert texts.count("no request had a token") == 2
    assert texts.count("no request had two tokens") == 1
    assert texts.count("nothing was measured") == len(texts) - 3 == 3
    assert not window.all(".legend, svg .axis")
