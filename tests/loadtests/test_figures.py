"""Figures of answers whose times are known."""

from dataclasses import replace

import pytest

from loadtests.figures import Span, Spread, measure, over_time
from loadtests.goals import Goals
from loadtests.sse import Answer

GOALS = Goals(ttft_p95_seconds=1.0, inter_token_p95_seconds=0.5, goodput_share=0.5)
SPAN = Span(100.0, 110.0, load=2)


def answer(began: float, ttft: float = 1.0, gap: float = 0.5, tokens: int = 5) -> Answer:
    gaps = [gap] * (tokens - 1)
    return Answer(began, ttft + sum(gaps), ttft, gaps, prompt_tokens=10, completion_tokens=tokens)


def test_counts_and_rates() -> None:
    figures = measure([answer(100.0), answer(104.0), answer(109.0)], SPAN, GOALS)
    assert (figures.complete, figures.prompt_tokens, figures.completion_tokens) == (3, 30, 15)
    # The third one's first token comes when the span is over.
    assert figures.tokens_per_second == pytest.approx(10 / 10)
    assert figures.requests_per_second == pytest.approx(2 / 10)
    assert figures.in_flight == pytest.approx((3 + 3 + 1) / 10)
    assert figures.tokens_per_event == 1.0


def test_requests_of_another_span_count_only_for_what_reaches_in() -> None:
    figures = measure([answer(98.0)], SPAN, GOALS)
    assert (figures.complete, figures.ttft) == (0, None)
    assert figures.in_flight == pytest.approx(1 / 10)
    assert figures.tokens_per_second == pytest.approx(3 / 10)


def test_what_began_as_the_test_ended_belongs_to_the_last_span() -> None:
    late = answer(110.5)
    assert measure([late], SPAN, GOALS).complete == 0
    figures = measure([late], replace(SPAN, last=True), GOALS)
    assert (figures.complete, figures.tokens_per_second) == (1, 0.0)


def test_latencies_have_their_quantiles() -> None:
    figures = measure([answer(100.0, ttft=0.1 * n) for n in range(1, 101)], SPAN, GOALS)
    assert figures.ttft
    assert figures.ttft.p50 == pytest.approx(5.0)
    assert figures.ttft.p95 == pytest.approx(9.5)
    assert figures.ttft.max == pytest.approx(10.0)
    assert figures.inter_token == Spread(0.5, 0.5, 0.5, 0.5, 0.5, samples=400)


def test_the_mean_between_tokens_counts_tokens_that_share_an_event() -> None:
    shared = Answer(100.0, 3.0, 1.0, [1.0, 1.0], completion_tokens=5)
    figures = measure([shared], SPAN, GOALS)
    assert figures.inter_token
    assert figures.inter_token.mean == 0.5
    assert figures.tokens_per_event == pytest.approx(5 / 3)
    assert figures.tokens_per_second == pytest.approx(0.5)


def test_goodput_wants_both_latencies_and_failures_count_against_it() -> None:
    failed = Answer(100.0, 1.0, error="gone")
    figures = measure([answer(100), answer(100, ttft=1.1), answer(100, gap=0.6), failed], SPAN, GOALS)
    assert figures.goodput_share == 0.25
    assert figures.goodput_per_second == 0.1
    assert figures.error_rate == 0.25
    assert figures.errors == {"gone": 1}
    assert measure([answer(100)], SPAN, Goals(error_rate=1)).goodput_share is None


def test_an_abandoned_request_is_neither_complete_nor_failed() -> None:
    figures = measure([Answer(100.0, 5.0, 1.0, [1.0], abandoned=True)], SPAN, GOALS)
    assert (figures.complete, figures.failed, figures.abandoned, figures.error_rate) == (0, 0, 1, None)
    assert figures.tokens_per_second == pytest.approx(0.2)


def test_what_came_of_an_abandoned_request_counts() -> None:
    silent = Answer(100.0, 5.0, abandoned=True)
    figures = measure([answer(100), Answer(100.0, 5.0, 3.0, [0.1], abandoned=True), silent], SPAN, GOALS)
    assert (figures.abandoned, figures.abandoned_without_token) == (2, 1)
    assert figures.ttft
    assert (figures.ttft.samples, figures.ttft.max) == (2, 3.0)
    assert figures.inter_token
    assert (figures.inter_token.samples, figures.inter_token.mean) == (5, pytest.approx((4 * 0.5 + 0.1) / 5))


def test_a_quantile_needs_samples_beyond_it() -> None:
    for share, least in ((0.5, 2), (0.95, 20), (0.99, 100)):
        for samples, known in ((least - 1, False), (least, True)):
            spread = Spread.of([1.0] * samples)
            assert spread
            assert (spread.quantile(share) is not None) == known


def test_slices_add_up_to_the_whole() -> None:
    answers = [answer(100 + n / 3) for n in range(30)]
    series = over_time(answers, SPAN, slices=5)
    assert series.time == [1, 3, 5, 7, 9]
    whole = measure(answers, SPAN, GOALS)
    assert sum(series.tokens_per_second) / 5 == pytest.approx(whole.tokens_per_second)
    assert sum(series.in_flight) / 5 == pytest.approx(whole.in_flight)
