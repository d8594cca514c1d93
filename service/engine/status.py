"""The engine's status, as its keeper tells it to its clients."""

from dataclasses import dataclass
from typing import Literal

import msgspec

from service.engine.messages import Ready


class EngineDead(Exception):
    """The engine takes no requests; the message is one line that says why."""


class EngineLost(EngineDead):
    """The engine ended while it had the request; the message is one line on how, fit for the HTTP client."""


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """Whether the engine works, and the reason if it does not."""

    state: Literal["starting", "ready", "dead"]
    reason: str
    """One line; empty while ready."""

    @property
    def alive(self) -> bool:
        """Whether there is an engine, or one is being started."""
        return self.state != "dead"


STARTING = EngineHealth("starting", "the engine is loading the model")


class EngineStatus(msgspec.Struct, frozen=True, tag=True):
    """The engine's whole status; each replaces the one before, so that a late client needs only the latest."""

    health: EngineHealth
    restarts: int
    """Number of times that the engine was started again."""
    final: bool = False
    """True for a dead engine that is not started again."""
    directory: str = ""
    """The directory in which a ready engine listens."""
    ready: Ready | None = None
    """The greeting of a ready engine: its limits, runner and process id."""
