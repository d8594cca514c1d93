"""Goals from a TOML file, and whether a run's figures meet them. Knows nothing of how figures are measured."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path


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


LEAST_SAMPLES = 20
"""The number of samples below which no goal is judged: of fewer, the 95th percentile is only the largest one."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure, and the number of samples that it rests on. `value` is None if there were none."""

    value: float | None
    samples: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """One goal and its result. `met` is None if there were too few samples to tell."""

    goal: str
    limit: float
    value: float | None
    samples: int
    met: bool | None


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


def judge(goals: Goals, figures: Mapping[str, Measured]) -> list[Verdict]:
    """A verdict for each goal that is set. `figures` are goal -> what was measured."""
    limits = {name: limit for name, limit in asdict(goals).items() if limit is not None}
    return [
        Verdict(name, limit, figures[name].value, figures[name].samples, _met(name, limit, figures[name]))
        for name, limit in limits.items()
    ]


def _met(name: str, limit: float, measured: Measured) -> bool | None:
    value = measured.value
    if value is None:
        return None
    if measured.samples < LEAST_SAMPLES and not _hopeless(name, limit, value, measured.samples):
        return None
    return value >= limit if name in AT_LEAST else value <= limit


def _hopeless(name: str, limit: float, value: float, samples: int) -> bool:
    """Whether a share would miss its limit even if all samples that are wanting were good ones."""
    match name:
        case "error_rate":
            bad, allowed = value, limit
        case "goodput_share":
            bad, allowed = 1 - value, 1 - limit
        case _:
            return False
    return round(bad * samples) > round(allowed * LEAST_SAMPLES, 6)
