"""Counts that several processes keep in the files of one folder, so that each process can report the sum."""

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector


def share_counts(folder: Path, slot: int) -> CollectorRegistry:
    """Make this process count in the files of its slot in an existing folder; returns a registry of the sums of all
    slots.

    It holds for every metric of the process, so it must be called before any metric is made.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    # Files are named by slot instead of by process id: so no files of dead processes pile up, and counts never fall.
    values.ValueClass = values.MultiProcessValue(lambda: slot)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))
    return registry
