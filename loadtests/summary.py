"""A run's summary: all figures, the verdict, the knee, and the server's own figures beside the clients'.

What it holds is what the JSON file holds and what the report shows.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from loadtests.figures import Figures, Span, measure
from loadtests.goals import Goals, Verdict, judge
from loadtests.scrape import Comparison, Scrape, compare
from loadtests.sse import Answer

SATURATED = 0.9
"""The knee is the smallest load with this share of the best throughput."""


@dataclass(frozen=True, slots=True)
class Server:
    """The server's side of a run."""

    build: dict[str, str]
    comparisons: list[Comparison]
    agrees: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything about a run but its single answers."""

    settings: dict[str, Any]
    total: Figures
    stages: list[Figures]
    drift: float | None
    """Mean inter-token latency of the last stage over that of the first."""
    goals: Goals
    verdicts: list[Verdict]
    passed: bool
    knee: int | None
    """Index of the stage where throughput is all but reached; only of a step run, like the next."""
    capacity: int | None
    """Index of the last stage that met the goals, like all before it."""
    server: Server | None
    """None if its metrics cannot be read."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(
    answers: Sequence[Answer], spans: Sequence[Span], goals: Goals, settings: dict[str, Any], gained: Scrape | None
) -> Summary:
    """`spans` are the stages of the run in turn; `gained` is what the server's metrics gained in it.

    A step run goes beyond the knee on purpose, so it is judged by its first stage, and a rate by its best one. Others
    are judged as a whole.
    """
    spans = [*spans[:-1], replace(spans[-1], last=True)]
    whole = replace(spans[-1], start=spans[0].start, users=max(span.users for span in spans))
    total = measure(answers, whole, goals)
    stages = [measure(answers, span, goals) for span in spans]
    drift = _drift(stages)
    stepped = settings["shape"] == "step"
    judged = values(stages[0] if stepped else total) | {"drift": drift}
    if stepped:
        judged["goodput_per_second"] = max(stage.goodput_per_second or 0.0 for stage in stages)
    verdicts = judge(goals, judged)
    return Summary(
        settings=settings,
        total=total,
        stages=stages,
        drift=drift,
        goals=goals,
        verdicts=verdicts,
        passed=all(verdict.met for verdict in verdicts),
        knee=find_knee(stages) if stepped else None,
        capacity=find_capacity(stages, goals) if stepped else None,
        server=_server(gained, total),
    )


def values(figures: Figures) -> dict[str, float | None]:
    """What goals are compared with, by their names; but for drift, which no single span has."""
    return {
        "ttft_p95_seconds": figures.ttft.p95 if figures.ttft else None,
        "inter_token_p95_seconds": figures.inter_token.p95 if figures.inter_token else None,
        "error_rate": figures.error_rate,
        "goodput_share": figures.goodput_share,
        "goodput_per_second": figures.goodput_per_second,
    }


def find_knee(stages: Sequence[Figures]) -> int:
    """The first stage with nearly the best throughput: beyond it, load adds waiting and little else."""
    best = max(stage.tokens_per_second for stage in stages)
    return next(index for index, stage in enumerate(stages) if stage.tokens_per_second >= SATURATED * best)


def find_capacity(stages: Sequence[Figures], goals: Goals) -> int | None:
    """The last of the leading stages that meet every goal for a single load; None if the first one doesn't."""
    goals = replace(goals, drift=None, goodput_per_second=None)
    good = [all(verdict.met for verdict in judge(goals, values(stage))) for stage in stages]
    leading = good.index(False) if False in good else len(good)
    return leading - 1 if leading else None


def _drift(stages: Sequence[Figures]) -> float | None:
    first, last = stages[0].inter_token, stages[-1].inter_token
    return last.mean / first.mean if first and last and len(stages) > 1 and first.mean else None


def _server(gained: Scrape | None, total: Figures) -> Server | None:
    comparisons = compare(gained, total) if gained else []
    if gained is None or not comparisons:
        return None
    return Server(gained.build, comparisons, all(comparison.agrees for comparison in comparisons))
