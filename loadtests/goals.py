"""Goals from a TOML file, and whether a run's figures meet them. Knows nothing of how figures are measured."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


class GoalsError(ValueError):
    """A goals file cannot be used. The message is one line."""


@dataclass(frozen=True, slots=True)
class Goals:
    """Limits, or None for goals that aren't set. Latencies are in seconds, rates per second, the others are shares.

    `drift` is a ratio of latencies.
    """

    ttft_p95_seconds: float | None = None
    inter_token_p95_seconds: float | None = None
    error_rate: float | None = None
    goodput_share: float | None = None
    goodput_per_second: float | None = None
    drift: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One goal and its result. If there was nothing to measure, `value` is None and the goal is missed."""

    goal: str
    limit: float
    value: float | None
    met: bool


AT_LEAST = ("goodput_share", "goodput_per_second")
"""Goals that are floors; the others are ceilings."""


def load_goals(path: Path) -> Goals:
    """Read a goals file. Raises GoalsError if it cannot be read, or has an unknown goal, a bad limit or no goal."""
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise GoalsError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise GoalsError(f"{path}: {error}") from None
    known = {field.name for field in fields(Goals)}
    for name, value in values.items():
        if name not in known:
            raise GoalsError(f"{path}: there is no goal {name!r}; there are {', '.join(sorted(known))}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise GoalsError(f"{path}: {name} should be a number of at least 0 (got {value!r})")
    goals = Goals(**values)
    latencies = (goals.ttft_p95_seconds, goals.inter_token_p95_seconds)
    if any(getattr(goals, name) is not None for name in AT_LEAST) and None in latencies:
        raise GoalsError(f"{path}: goodput needs ttft_p95_seconds and inter_token_p95_seconds to be measured by")
    if all(value is None for value in asdict(goals).values()):
        raise GoalsError(f"{path}: no goal in it")
    return goals


def judge(goals: Goals, values: Mapping[str, Any]) -> list[Verdict]:
    """A verdict for each goal that is set. `values` are goal -> value, or None where nothing was measured."""
    verdicts = []
    for name, limit in asdict(goals).items():
        if limit is not None:
            value = values[name]
            met = value is not None and (value >= limit if name in AT_LEAST else value <= limit)
            verdicts.append(Verdict(name, limit, value, met))
    return verdicts
