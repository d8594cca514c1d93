"""The engine as its users see it: requests in, streams of deltas out. The tests' engines have this interface too."""

from collections.abc import AsyncIterable, Callable
from typing import Protocol

from model.limits import ModelLimits, RunnerInfo
from service.engine.messages import Delta, EngineRequest, EngineStats
from service.engine.status import EngineHealth


class DeltaStream(AsyncIterable[Delta], Protocol):
    """The deltas of one request, in order, up to the one with a finish reason."""

    @property
    def ahead(self) -> bool:
        """Whether the next delta is here already."""

    def cancel(self) -> None:
        """Cancel the request; without effect on a finished one."""


class EngineClient(Protocol):
    """One client of an engine. However the engine ends, every open stream gets a last delta with reason "lost"."""

    @property
    def stats(self) -> EngineStats:
        """Statistics of the latest report, over all clients; all zero while there is no engine."""

    @property
    def restarts(self) -> int:
        """Number of times that the engine was started again."""

    @property
    def info(self) -> RunnerInfo | None:
        """Properties of the runner (device, dtype, backend); None before a model was first loaded."""

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None while it has no model."""

    @property
    def limits(self) -> ModelLimits:
        """Limits of the loaded model. Raises EngineDead before a model was first loaded."""

    def health(self) -> EngineHealth:
        """The engine's state as far as this client knows."""

    def submit(self, request: EngineRequest, ended: Callable[[], object] = lambda: None) -> DeltaStream:
        """Start a request, which must fit the limits. Raises EngineDead if the engine is not ready.

        `ended` is called once, as soon as the request's last delta has arrived, whether or not the earlier ones have
        been read.
        """

    def stop(self) -> None:
        """Leave the engine, which goes on without this client; open requests end."""
