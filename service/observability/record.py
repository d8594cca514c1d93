"""What one HTTP request leaves behind: its ids, its moments and its counts, for metrics, logs and traces to tell.

Never its text. Knows neither Prometheus nor OpenTelemetry.
"""

import re
import time
import uuid
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from service.observability.timeline import Timeline

_PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One request, from its headers to the last byte of its answer. Moments are seconds on `clock`."""

    method: str
    """One of HTTP's, or other."""
    client_id: str | None = None
    """The client's own name for the request, if it is one to repeat."""
    clock: Callable[[], float] = time.perf_counter
    id: str = field(default_factory=lambda: f"req-{uuid.uuid4().hex}")
    """The answer's own id; one of this request alone until there is an answer."""
    began: float = field(init=False)
    began_unix_ns: int = field(default_factory=time.time_ns)
    """The same moment in nanoseconds since 1970."""
    responded: float | None = None
    """When the first byte of the answer was sent."""
    ended: float | None = None
    route: str | None = None
    """The route's template; None if there is no such route."""
    status: int | None = None
    error: str | None = None
    """The code of the error that was answered, which is ours."""
    stream: bool = False
    ignored: list[str] = field(default_factory=list)
    """Plain names of fields in its body that had no effect."""
    n: int = 1
    """Completions for each prompt."""
    timelines: list[Timeline] = field(default_factory=list)
    """One for each completion; those of a prompt stand together."""

    def __post_init__(self) -> None:
        self.began = self.clock()

    @property
    def prompt_tokens(self) -> int:
        """A prompt counts once, whatever `n`; so it does in an answer's usage."""
        return sum(timeline.prompt_tokens for timeline in self.timelines[:: self.n])

    @property
    def cached_tokens(self) -> int:
        """Those of them that were found in the prefix cache."""
        return sum(timeline.cached_tokens for timeline in self.timelines[:: self.n])

    @property
    def completion_tokens(self) -> int:
        """Over all completions."""
        return sum(timeline.tokens for timeline in self.timelines)

    @property
    def finish_reasons(self) -> list[str]:
        """One for each completion."""
        return [timeline.finish_reason or "abort" for timeline in self.timelines]


def plain_id(given: str | None) -> str | None:
    """A client's id of a request if it is short and plain enough to repeat in headers and logs, else None."""
    return given if given is not None and _PLAIN_ID.fullmatch(given) else None


def record_of(scope: MutableMapping[str, Any]) -> RequestRecord:
    """The record of a request, by its ASGI scope; a new one where none is kept."""
    state = scope.setdefault("state", {})
    if "record" not in state:
        state["record"] = RequestRecord(method="other")
    record: RequestRecord = state["record"]
    return record
