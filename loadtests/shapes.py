"""Shapes of the load: the number of users over time, as a list of stages. Knows no Locust."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """A number of users for a number of seconds."""

    users: int
    seconds: float


def steady(users: int, seconds: float) -> list[Stage]:
    """The same load all along."""
    return [Stage(users, seconds)]


def step(users: int, seconds: float) -> list[Stage]:
    """1, 2, 4 ... users in stages of equal length, to find where throughput stops growing and latency begins to."""
    levels = [2**power for power in range(users.bit_length()) if 2**power < users] + [users]
    return [Stage(level, seconds / len(levels)) for level in levels]


def spike(users: int, seconds: float) -> list[Stage]:
    """A quarter of the users, all of them for a fifth of the time, a quarter again: to see if the server recovers."""
    base = max(users // 4, 1)
    return [Stage(base, seconds * 0.4), Stage(users, seconds * 0.2), Stage(base, seconds * 0.4)]


def soak(users: int, seconds: float) -> list[Stage]:
    """The same load for long, in quarters that can be compared, to see whether the server gets slower."""
    return [Stage(users, seconds / 4)] * 4


SHAPES: dict[str, Callable[[int, float], list[Stage]]] = {"steady": steady, "step": step, "spike": spike, "soak": soak}


def stage_at(stages: list[Stage], seconds: float) -> Stage | None:
    """The stage at `seconds` from the start; None after the last one."""
    for stage in stages:
        if seconds < stage.seconds:
            return stage
        seconds -= stage.seconds
    return None
