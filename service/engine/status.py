"""What is told of an engine by whoever keeps it to whoever uses it."""

from dataclasses import dataclass
from typing import Literal

import msgspec

from service.engine.messages import Ready


class EngineDead(Exception):
    """The engine takes no requests; one line that says why."""


class EngineLost(EngineDead):
    """The engine ended while it had the request; one line on how, fit for the client."""


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """Whether the engine works, and if not, why."""

    state: Literal["starting", "ready", "dead"]
    reason: str
    """One line; empty while ready."""

    @property
    def alive(self) -> bool:
        """Whether there is an engine, or one is on its way."""
        return self.state != "dead"


STARTING = EngineHealth("starting", "the engine is loading the model")


class EngineStatus(msgspec.Struct, frozen=True, tag=True):
    """All there is to know. The latest is enough for who comes late."""

    health: EngineHealth
    restarts: int
    """How often the engine was started again."""
    final: bool = False
    """A dead engine is not started again."""
    directory: str = ""
    """Where a ready engine listens."""
    ready: Ready | None = None
    """What a ready engine said of itself."""
