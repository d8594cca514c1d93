"""Counts that several processes keep in files of one folder, so that each of them can tell the sum."""

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector


def share_counts(folder: Path, slot: int) -> CollectorRegistry:
    """Have this process count in files of its slot in an existing folder, and sum up those of all slots.

    It holds for whatever the process counts: for its beginning, before any metric is made.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    # By slot, and not by process id as usual: so there are no files of dead processes, and counts never fall.
    values.ValueClass = values.MultiProcessValue(lambda: slot)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))
    return registry
