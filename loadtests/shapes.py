"""Shapes of the load over time, as a list of stages. Knows no Locust."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """A load for a number of seconds."""

    load: float
    """Users of a closed loop, or conversations that begin per second in an open one."""
    seconds: float


def steady(load: float, seconds: float, whole: bool) -> list[Stage]:
    """The same load all along."""
    return [Stage(load, seconds)]


def step(load: float, seconds: float, whole: bool) -> list[Stage]:
    """1, 2, 4 ... users in stages of equal length, to find where throughput stops growing and latency begins to.

    Loads that are no `whole` numbers begin with an eighth.
    """
    levels = [1.0 if whole else load / 8]
    while levels[-1] < load:
        levels.append(min(2 * levels[-1], load))
    return sweep(levels, seconds)


def sweep(loads: list[float], seconds: float) -> list[Stage]:
    """These loads in turn, in stages of equal length."""
    return [Stage(load, seconds / len(loads)) for load in loads]


def spike(load: float, seconds: float, whole: bool) -> list[Stage]:
    """A quarter of the load, all of it for a fifth of the time, a quarter again: to see if the server recovers."""
    base = max(load // 4, 1.0) if whole else load / 4
    return [Stage(base, seconds * 0.4), Stage(load, seconds * 0.2), Stage(base, seconds * 0.4)]


def soak(load: float, seconds: float, whole: bool) -> list[Stage]:
    """The same load for long, in quarters that can be compared, to see whether the server gets slower."""
    return [Stage(load, seconds / 4)] * 4


SHAPES: dict[str, Callable[[float, float, bool], list[Stage]]] = {
    "steady": steady,
    "step": step,
    "spike": spike,
    "soak": soak,
}


def stage_at(stages: list[Stage], seconds: float) -> Stage | None:
    """The stage at `seconds` from the start; None after the last one."""
    for stage in stages:
        if seconds < stage.seconds:
            return stage
        seconds -= stage.seconds
    return None
