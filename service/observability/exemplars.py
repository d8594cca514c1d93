"""Exemplars: for each bucket of a histogram, the newest trace whose value fell into it.

They are of this process alone, because the files in which several processes count have no room for them.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import inf

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString


class Exemplars:
    """The newest exemplar of each bucket of each histogram."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str], Exemplar] = {}

    def note(self, name: str, bounds: Sequence[float], value: float, trace_id: str, moment: float) -> None:
        """Remember the trace of a value that a histogram has observed at `moment`, in Unix seconds.

        `bounds` are the upper bounds of the histogram's buckets but the last, in order.
        """
        bound = [*bounds, inf][bisect_left(bounds, value)]
        self._newest[name, floatToGoString(bound)] = Exemplar({"trace_id": trace_id}, value, moment)

    def of(self, name: str, bound: str) -> Exemplar | None:
        """The exemplar of the bucket of a histogram with an upper bound."""
        return self._newest.get((name, bound))


class WithExemplars(Collector):
    """The metrics of a collector, their buckets with exemplars."""

    def __init__(self, collector: Collector, exemplars: Exemplars) -> None:
        self._collector = collector
        self._exemplars = exemplars

    def collect(self) -> Iterator[Metric]:
        for family in self._collector.collect():
            if family.type == "histogram":
                family.samples = [
                    sample._replace(exemplar=self._exemplars.of(family.name, sample.labels["le"]))
                    if "le" in sample.labels
                    else sample
                    for sample in family.samples
                ]
            yield family
