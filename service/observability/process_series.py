"""The API processes as Prometheus metrics: Prometheus's own process_*, with the process's slot as a label."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector


class ApiProcessCollector(Collector):
    """Makes the same metrics of all API processes in whichever process is scraped."""

    def __init__(self, pids: Callable[[], Mapping[int, int]]) -> None:
        """`pids` gives the process ids by slot; dead processes have no series."""
        self._pids = pids

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for slot, pid in self._pids().items():
            for family in _figures(pid):
                for sample in family.samples:
                    sample.labels["process"] = str(slot)
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                merged.samples += family.samples
        return families.values()


def _figures(pid: int) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: pid, registry=None).collect()
