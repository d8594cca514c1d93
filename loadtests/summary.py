"""A run's summary: all figures, the verdict, the knee, and the server's own figures compared with the clients'.

The JSON file holds exactly this summary, and the report shows it.
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
    """The comparison of a run with the server's own figures."""

    build: dict[str, str]
    comparisons: list[Comparison]
    agrees: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """All results of a run, except the single answers."""

    settings: dict[str, Any]
    total: Figures
    stages: list[Figures]
    drift: float | None
    """Mean inter-token latency of the last stage, divided by that of the first."""
    goals: Goals
    verdicts: list[Verdict]
    passed: bool
    knee: int | None
    """Index of the first stage with SATURATED of the best throughput; None unless the shape is step."""
    capacity: int | None
    """Index of the last of the leading stages that met the goals; None if there is none, or the shape is not step."""
    server: Server | None
    """None if the server's metrics cannot be read."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(
    answers: Sequence[Answer], spans: Sequence[Span], goals: Goals, settings: dict[str, Any], gained: Scrape | None
) -> Summary:
    """The summary of a run with the stages `spans`; `gained` is the increase of the server's metrics.

    A step run goes beyond the knee on purpose, so it is judged by its first stage, and its goodput_per_second by its
    best stage. Other runs are judged as a whole.
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
    """Goal -> the figure it is compared with. Drift is missing, since it is no figure of a single span."""
    return {
        "ttft_p95_seconds": figures.ttft.p95 if figures.ttft else None,
        "inter_token_p95_seconds": figures.inter_token.p95 if figures.inter_token else None,
        "error_rate": figures.error_rate,
        "goodput_share": figures.goodput_share,
        "goodput_per_second": figures.goodput_per_second,
    }


def find_knee(stages: Sequence[Figures]) -> int:
    """The index of the first stage with SATURATED of the best throughput; more load mostly adds waiting."""
    best = max(stage.tokens_per_second for stage in stages)
    return next(index for index, stage in enumerate(stages) if stage.tokens_per_second >= SATURATED * best)


def find_capacity(stages: Sequence[Figures], goals: Goals) -> int | None:
    """The index of the last of the leading stages that meet every goal; None if the first one doesn't.

    Goals for drift and goodput_per_second are ignored, since they are not about a single load.
    """
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
