"""What a request says beside its body: whose it is, and how long it may wait."""

import math
from dataclasses import dataclass

from starlette.requests import Request

from service.api.auth import caller_of
from service.api.errors import ApiError
from service.observability.record import RequestRecord, record_of
from service.settings import Settings

TIMEOUT = "x-request-timeout"
"""Seconds that a request may wait for its first step."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the door knows of a request before it has looked at the body."""

    record: RequestRecord
    caller: str
    """See `auth`."""
    patience: float | None
    """Seconds that it may wait for its first step; None: as long as it takes."""


def envelope_of(request: Request, settings: Settings) -> Envelope:
    """Raises ApiError for a time that is none."""
    return Envelope(record_of(request.scope), caller_of(request.scope), _patience(request, settings))


def _patience(request: Request, settings: Settings) -> float | None:
    given = request.headers.get(TIMEOUT)
    if given is None:
        return settings.queue_timeout
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ApiError(400, "X-Request-Timeout should be a number of seconds above 0.", param="X-Request-Timeout")
    return seconds if settings.queue_timeout is None else min(seconds, settings.queue_timeout)
