"""The metrics of a whole request, made from its record once it has been answered."""

from service.observability.metrics import FIRST_TOKEN, LATENCY, Metrics
from service.observability.record import RequestRecord


def count_request(metrics: Metrics, record: RequestRecord, *, probe: bool) -> None:
    """Count an answered request; its record has a status."""
    assert record.status is not None
    metrics.count_response(record.route or "unmatched", record.method, record.status, record.error, probe=probe)
    if record.timelines:
        metrics.n.observe(record.n)
    for first in range(0, len(record.timelines), record.n):
        metrics.longest.observe(max(timeline.tokens for timeline in record.timelines[first : first + record.n]))


def note_trace(metrics: Metrics, record: RequestRecord, trace_id: str) -> None:
    """Remember the trace of a request that has ended as the exemplar of its latencies."""
    assert record.ended is not None
    ended = record.began_unix_ns / 1e9 + record.ended - record.began
    for timeline in record.timelines:
        for name, moment in ((FIRST_TOKEN, timeline.first_token), (LATENCY, timeline.ended)):
            if moment is not None:
                metrics.note_trace(name, moment - record.began, trace_id, ended)
