"""Figures of a span of time, computed from answers: latencies, throughput, concurrency and goodput.

All times were measured by the clients. The server's own metrics are not used here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt

from loadtests.goals import Goals
from loadtests.sse import Answer

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a run. `start` and `end` are times of day in seconds."""

    start: float
    end: float
    load: float
    """Users, or conversations that begin per second, that were planned."""
    last: bool = False
    """Whether requests that began after `end` belong to it too: users need a moment to stop at the end of the test."""

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Spread:
    """The distribution of a latency, in seconds."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float
    samples: int

    def quantile(self, share: float) -> float | None:
        """p50, p95 or p99; None if there are so few samples that it is but the largest of them."""
        known = {0.5: self.p50, 0.95: self.p95, 0.99: self.p99}
        return known[share] if self.samples * (1 - share) >= 1 - 1e-9 else None

    @classmethod
    def of(cls, values: Sequence[float] | Numbers, mean: float | None = None) -> Self | None:
        """The spread of `values`, or None if there are none. `mean` replaces the mean of the values if given."""
        if not len(values):
            return None
        # Quantiles are measured values, without interpolation: like the histogram's quantiles that they are compared
        # with, they lie in a bucket that has a value.
        p50, p95, p99 = np.quantile(values, (0.5, 0.95, 0.99), method="inverted_cdf")
        middle = float(np.mean(values)) if mean is None else mean
        return cls(middle, float(p50), float(p95), float(p99), float(max(values)), len(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of a span: latencies and counts of the requests that began in it, rates of the events in it."""

    load: float
    seconds: float
    complete: int
    failed: int
    abandoned: int
    """Requests that the end of the test broke off. Their tokens until then count in `ttft` and `inter_token`."""
    abandoned_without_token: int
    errors: dict[str, int]
    """Message -> number of requests that failed with it."""
    error_rate: float | None
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    tokens_per_event: float | None
    """1 if every token came in its own event; if more, gaps between events are not gaps between tokens."""
    ttft: Spread | None
    inter_token: Spread | None
    """Quantiles are those of the gaps between events; the mean is over tokens."""
    end_to_end: Spread | None
    in_flight: float
    """The average number of requests being answered."""
    requests_per_second: float
    tokens_per_second: float
    goodput_share: float | None
    """The share of requests that met the goal for the first token and, by their mean gap, that for the next ones."""
    goodput_per_second: float | None
    """The same as a rate."""


@dataclass(slots=True)
class Series:
    """Figures of the slices of a run, NaN where nothing was measured. Times are seconds from the start of the run."""

    start: float
    """The time of day at which the run started."""
    time: list[float] = field(default_factory=list)
    ttft_p50: list[float] = field(default_factory=list)
    ttft_p95: list[float] = field(default_factory=list)
    inter_token_p50: list[float] = field(default_factory=list)
    inter_token_p95: list[float] = field(default_factory=list)
    in_flight: list[float] = field(default_factory=list)
    tokens_per_second: list[float] = field(default_factory=list)


def arrivals(answer: Answer) -> Numbers:
    """The time of day at which each event with a token came, [events]."""
    if answer.ttft is None:
        return np.empty(0)
    return answer.began + answer.ttft + np.cumsum([0.0, *answer.gaps])


def measure(answers: Sequence[Answer], span: Span, goals: Goals) -> Figures:
    """The figures of `span`. `answers` may begin and end outside of it."""
    mine = [answer for answer in answers if span.start <= answer.began and (answer.began < span.end or span.last)]
    complete = [answer for answer in mine if answer.complete]
    errors = [answer.error for answer in mine if answer.error is not None]
    finished = len(complete) + len(errors)
    good = [answer for answer in complete if _meets(answer, goals)] if _judges_latency(goals) else None
    events = sum(1 + len(answer.gaps) for answer in complete)
    tokens = sum(answer.completion_tokens for answer in complete)
    abandoned = [answer for answer in mine if answer.abandoned]
    heard = [answer for answer in (*complete, *abandoned) if answer.ttft is not None]
    gaps = [gap for answer in heard for gap in answer.gaps]
    pauses = tokens - len(complete) + sum(len(answer.gaps) for answer in abandoned)
    return Figures(
        load=span.load,
        seconds=span.seconds,
        complete=len(complete),
        failed=len(errors),
        abandoned=len(abandoned),
        abandoned_without_token=sum(answer.ttft is None for answer in abandoned),
        errors={error: errors.count(error) for error in sorted(set(errors))},
        error_rate=len(errors) / finished if finished else None,
        prompt_tokens=sum(answer.prompt_tokens for answer in complete),
        cached_prompt_tokens=sum(answer.cached_tokens for answer in complete),
        completion_tokens=tokens,
        tokens_per_event=tokens / events if events else None,
        ttft=Spread.of([answer.ttft for answer in heard if answer.ttft is not None]),
        inter_token=Spread.of(gaps, mean=sum(gaps) / max(pauses, 1)),
        end_to_end=Spread.of([answer.seconds for answer in complete]),
        in_flight=_in_flight(answers, span),
        requests_per_second=_ended(answers, span) / span.seconds,
        tokens_per_second=_tokens(answers, span) / span.seconds,
        goodput_share=len(good) / finished if good is not None and finished else None,
        goodput_per_second=len(good) / span.seconds if good is not None else None,
    )


def over_time(answers: Sequence[Answer], span: Span, slices: int | None = None) -> Series:
    """The figures of at most `slices` equal slices of `span`, none shorter than a second.

    By default there are so many that a slice has a few requests, and at most 60.
    """
    slices = min(60, max(len(answers) // 3, 6)) if slices is None else slices
    slices = max(min(slices, int(span.seconds)), 1)
    edges = np.linspace(span.start, span.end, slices + 1)
    series = Series(span.start)
    for start, end in pairwise(edges):
        part = measure(answers, Span(float(start), float(end), span.load), Goals())
        series.time.append(float((start + end) / 2 - span.start))
        series.ttft_p50.append(part.ttft.p50 if part.ttft else np.nan)
        series.ttft_p95.append(part.ttft.p95 if part.ttft else np.nan)
        series.inter_token_p50.append(part.inter_token.p50 if part.inter_token else np.nan)
        series.inter_token_p95.append(part.inter_token.p95 if part.inter_token else np.nan)
        series.in_flight.append(part.in_flight)
        series.tokens_per_second.append(part.tokens_per_second)
    return series


def _judges_latency(goals: Goals) -> bool:
    return goals.ttft_p95_seconds is not None and goals.inter_token_p95_seconds is not None


def _meets(answer: Answer, goals: Goals) -> bool:
    assert answer.ttft is not None
    assert goals.ttft_p95_seconds is not None
    assert goals.inter_token_p95_seconds is not None
    pace = answer.seconds_per_token
    return answer.ttft <= goals.ttft_p95_seconds and (pace is None or pace <= goals.inter_token_p95_seconds)


def _in_flight(answers: Sequence[Answer], span: Span) -> float:
    """The average number of requests in flight: the time that requests spent in the span, over its length.

    Source: Little, "A proof for the queuing formula L = lambda W" (Operations Research, 1961).
    """
    spent = (min(answer.began + answer.seconds, span.end) - max(answer.began, span.start) for answer in answers)
    return sum(max(seconds, 0.0) for seconds in spent) / span.seconds


def _ended(answers: Sequence[Answer], span: Span) -> int:
    return sum(answer.complete and span.start <= answer.began + answer.seconds < span.end for answer in answers)


def _tokens(answers: Sequence[Answer], span: Span) -> float:
    """The number of tokens that came in the span; for complete answers, scaled to the server's count."""
    total = 0.0
    for answer in answers:
        if answer.ttft is None or answer.began >= span.end or answer.began + answer.seconds < span.start:
            continue
        times = arrivals(answer)
        inside = int(np.count_nonzero((times >= span.start) & (times < span.end)))
        total += inside * (answer.completion_tokens / len(times) if answer.complete else 1.0)
    return total
