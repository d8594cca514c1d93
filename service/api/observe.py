"""Middleware that keeps a record of every request, and passes it to metrics, log and traces when the request has ended.

It also names requests: an answer's X-Request-Id is the client's own id, if that is plain, or else the answer's id.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import describe
from service.engine.messages import RequestTimes
from service.observability.metrics import Metrics
from service.observability.record import RequestRecord, TraceId, plain_id
from service.observability.request_series import count_request, note_trace

CLIENT_CLOSED_REQUEST = 499
"""The status in logs and metrics of a request whose client left before there was one."""

REQUEST_ID = "x-request-id"
IGNORED = "x-headlight-ignored"
"""Header of an answer that lists the fields of the body that had no effect."""
PROBES = frozenset({"/health", "/ready", "/ping", "/metrics"})
"""Routes that are asked every few seconds: they are not traced, are counted apart, and are logged at debug level
only."""

_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})

Trace = Callable[[RequestRecord, Mapping[str, str]], TraceId]
"""A function that traces an ended request with these headers, and returns the trace's id."""

log = logging.getLogger(__name__)


class Observe:
    """The middleware; all but PlainPath and Leftovers run inside of it."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, trace: Trace | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._trace = trace
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord(
            # A client may invent methods, but must not create labels.
            method=scope["method"] if scope["method"] in _METHODS else "other",
            client_id=plain_id(headers.get(REQUEST_ID)),
            clock=self._clock,
        )
        scope.setdefault("state", {})["record"] = record

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.responded, record.status = self._clock(), message["status"]
                head = MutableHeaders(scope=message)
                head.setdefault(REQUEST_ID, record.client_id or record.id)
                if record.ignored:
                    head[IGNORED] = ", ".join(record.ignored)
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception as error:
            # Starlette answers the error outside of all middleware, so its status is noted here.
            described = describe(error)
            record.status, record.error = record.status or described.status_code, described.body.error.code
            raise
        finally:
            record.ended = self._clock()
            record.route = getattr(scope.get("route"), "path", None)
            self._tell(record, headers)

    def _tell(self, record: RequestRecord, headers: Headers) -> None:
        record.status = record.status or CLIENT_CLOSED_REQUEST
        probe = record.route in PROBES
        count_request(self._metrics, record, probe=probe)
        trace = self._trace(record, headers) if self._trace and not probe else None
        if trace is not None and trace.sampled:
            note_trace(self._metrics, record, trace.hex)
        level = logging.DEBUG if probe else logging.INFO
        if log.isEnabledFor(level):
            line = f"{record.method} {record.route or 'unmatched'} {record.status}"
            log.log(level, line, extra={"fields": fields_of(record, trace.hex if trace else None)})


def fields_of(record: RequestRecord, trace_id: str | None) -> dict[str, Any]:
    """The fields of a request's log line; seconds are the longest over its completions.

    They hold no text of prompts or completions. The only words of a client in them are its plain request id and the
    plain names of fields that were ignored.
    """
    assert record.ended is not None
    fields: dict[str, Any] = {
        "request_id": record.id,
        "client_request_id": record.client_id,
        "trace_id": trace_id,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "error": record.error,
        "ignored": ",".join(record.ignored) or None,
        "duration_seconds": record.ended - record.began,
    }
    if record.timelines:
        times = [timeline.times for timeline in record.timelines]
        fields |= {
            "stream": record.stream,
            "completions": len(record.timelines),
            "finish_reason": ",".join(sorted(set(record.finish_reasons))),
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "completion_tokens": record.completion_tokens,
            "first_token_seconds": _longest([t.first_token and t.first_token - record.began for t in record.timelines]),
            **{
                f"{phase}_seconds": _longest([getattr(t, phase) for t in times])
                for phase in RequestTimes.__struct_fields__
            },
        }
    return {name: value for name, value in fields.items() if value is not None}


def _longest(seconds: list[float | None]) -> float | None:
    return max((value for value in seconds if value is not None), default=None)
