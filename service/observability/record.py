"""The record of one HTTP request: its ids, moments and counts, for metrics, logs and traces.

It never holds the request's text. Knows neither Prometheus nor OpenTelemetry.
"""

import re
import time
import uuid
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from service.observability.timeline import Timeline

_PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class TraceId(NamedTuple):
    """The trace of a request."""

    hex: str
    sampled: bool
    """Whether the trace is exported, so that somebody can look it up."""


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One request, from its headers to the last byte of its answer. Moments are in seconds on `clock`."""

    method: str
    """One of HTTP's methods, or the word other."""
    client_id: str | None = None
    """The client's own id for the request, if it is plain enough to repeat."""
    clock: Callable[[], float] = time.perf_counter
    id: str = field(default_factory=lambda: f"req-{uuid.uuid4().hex}")
    """The answer's id; until there is an answer, an id of the request alone."""
    began: float = field(init=False)
    began_unix_ns: int = field(default_factory=time.time_ns)
    """The moment `began`, in nanoseconds since 1970."""
    responded: float | None = None
    """Moment when the first byte of the answer was sent."""
    ended: float | None = None
    route: str | None = None
    """The route's path template; None if no route matched."""
    status: int | None = None
    error: str | None = None
    """Our code of the error that was answered."""
    stream: bool = False
    ignored: list[str] = field(default_factory=list)
    """Plain names of fields in the body that had no effect."""
    n: int = 1
    """Number of completions for each prompt."""
    timelines: list[Timeline] = field(default_factory=list)
    """One timeline for each completion; those of the same prompt are neighbours."""

    def __post_init__(self) -> None:
        self.began = self.clock()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; each prompt counts once, whatever `n`, as in an answer's usage."""
        return sum(timeline.prompt_tokens for timeline in self.timelines[:: self.n])

    @property
    def cached_tokens(self) -> int:
        """Tokens among `prompt_tokens` that were found in the prefix cache."""
        return sum(timeline.cached_tokens for timeline in self.timelines[:: self.n])

    @property
    def completion_tokens(self) -> int:
        """Tokens of all completions."""
        return sum(timeline.tokens for timeline in self.timelines)

    @property
    def finish_reasons(self) -> list[str]:
        """Finish reasons, one for each completion."""
        return [timeline.finish_reason or "abort" for timeline in self.timelines]


def plain_id(given: str | None) -> str | None:
    """A client's request id if it is short and plain enough to repeat in headers and logs, else None."""
    return given if given is not None and _PLAIN_ID.fullmatch(given) else None


def record_of(scope: MutableMapping[str, Any]) -> RequestRecord:
    """The record of a request, by its ASGI scope; a new one if none is kept there."""
    state = scope.setdefault("state", {})
    if "record" not in state:
        state["record"] = RequestRecord(method="other")
    record: RequestRecord = state["record"]
    return record
