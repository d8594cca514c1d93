"""The envelope of a request, the facts beside its body: the caller, and how long the request may wait."""

import math
from dataclasses import dataclass

from starlette.requests import Request

from service.api.auth import caller_of
from service.api.errors import ApiError
from service.observability.record import RequestRecord, record_of
from service.settings import Settings

TIMEOUT = "x-request-timeout"
"""Header with the seconds that a request may wait for its first step."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """Facts about a request that are known before its body is looked at."""

    record: RequestRecord
    caller: str
    """Label of the client's API key, see `auth.caller_of`."""
    patience: float | None
    """Seconds that the request may wait for its first step; None means without limit."""


def envelope_of(request: Request, settings: Settings) -> Envelope:
    """The envelope of a request. Raises ApiError if its header is not a valid time."""
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
