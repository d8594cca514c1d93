"""A run's summary: all figures, the verdict, the knee, and the server's own figures compared with the clients'.

The JSON file holds exactly this summary, and the report shows it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from loadtests.figures import Figures, Span, measure
from loadtests.goals import Goals, Measured, Verdict, judge
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
    models: dict[str, Figures]
    """The total of each model; empty if there is only one."""
    drift: float | None
    """Mean inter-token latency of the last stage, divided by that of the first."""
    goals: Goals
    verdicts: list[Verdict]
    passed: bool | None
    """Whether all goals are met; None if none is missed, but some rest on too few samples."""
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

    Answers that began before the first stage are the warm-up's. Only the server's figures are compared with them.

    A step run goes beyond the knee on purpose, so it is judged by its first stage, and its goodput_per_second by its
    best stage. Other runs are judged as a whole.
    """
    spans = [*spans[:-1], replace(spans[-1], last=True)]
    whole = replace(spans[-1], start=spans[0].start, load=max(span.load for span in spans))
    total = measure(answers, whole, goals)
    stages = [measure(answers, span, goals) for span in spans]
    drift = _drift(stages)
    stepped = settings["shape"] == "step"
    judged = values(stages[0] if stepped else total) | {"drift": Measured(drift, _drift_samples(stages))}
    if stepped:
        best = max(stages, key=lambda stage: stage.goodput_per_second or 0.0)
        judged["goodput_per_second"] = values(best)["goodput_per_second"]
    verdicts = judge(goals, judged)
    return Summary(
        settings=settings,
        total=total,
        stages=stages,
        models=_by_model(answers, whole, goals),
        drift=drift,
        goals=goals,
        verdicts=verdicts,
        passed=_passed(verdicts),
        knee=find_knee(stages) if stepped else None,
        capacity=find_capacity(stages, goals) if stepped else None,
        server=_server(gained, measure(answers, replace(whole, start=-inf), goals)),
    )


def _by_model(answers: Sequence[Answer], whole: Span, goals: Goals) -> dict[str, Figures]:
    names = sorted({answer.model for answer in answers})
    if len(names) < 2:
        return {}
    return {name: measure([answer for answer in answers if answer.model == name], whole, goals) for name in names}


def values(figures: Figures) -> dict[str, Measured]:
    """Goal -> the figure it is compared with. Drift is missing, since it is no figure of a single span."""
    finished = figures.complete + figures.failed
    ttft, pace = figures.ttft, figures.inter_token
    return {
        "ttft_p95_seconds": Measured(ttft.p95, ttft.samples) if ttft else Measured(None, 0),
        "inter_token_p95_seconds": Measured(pace.p95, pace.samples) if pace else Measured(None, 0),
        "error_rate": Measured(figures.error_rate, finished),
        "goodput_share": Measured(figures.goodput_share, finished),
        "goodput_per_second": Measured(figures.goodput_per_second, finished),
    }


def _passed(verdicts: Sequence[Verdict]) -> bool | None:
    if any(verdict.met is False for verdict in verdicts):
        return False
    return None if any(verdict.met is None for verdict in verdicts) else True


def find_knee(stages: Sequence[Figures]) -> int:
    """The index of the first stage with SATURATED of the best throughput; more load mostly adds waiting."""
    best = max(stage.tokens_per_second for stage in stages)
    return next(index for index, stage in enumerate(stages) if stage.tokens_per_second >= SATURATED * best)


def find_capacity(stages: Sequence[Figures], goals: Goals) -> int | None:
    """The index of the last stage that meets every goal, before the first one that misses one; None without such.

    Stages with too few samples to tell are passed over. Goals for drift and goodput_per_second are ignored, since they
    are not about a single load.
    """
    goals = replace(goals, drift=None, goodput_per_second=None)
    held = None
    for index, stage in enumerate(stages):
        passed = _passed(judge(goals, values(stage)))
        if passed is False:
            break
        held = index if passed else held
    return held


def _drift(stages: Sequence[Figures]) -> float | None:
    first, last = stages[0].inter_token, stages[-1].inter_token
    return last.mean / first.mean if first and last and len(stages) > 1 and first.mean else None


def _drift_samples(stages: Sequence[Figures]) -> int:
    return min(stage.inter_token.samples if stage.inter_token else 0 for stage in (stages[0], stages[-1]))


def _server(gained: Scrape | None, total: Figures) -> Server | None:
    comparisons = compare(gained, total) if gained else []
    if gained is None or not comparisons:
        return None
    return Server(gained.build, comparisons, all(comparison.agrees for comparison in comparisons))
