"""Where the API processes of a server meet: a folder, in which each has a slot.

Whoever replaces a process gets its slot.
"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Shared:
    """The folder, from one process's point of view."""

    folder: Path
    slot: int
    slots: int

    @property
    def places(self) -> Path:
        """The file of open completions."""
        return self.folder / "places"

    @property
    def counts(self) -> Path:
        """The folder of what the processes count for Prometheus."""
        return self.folder / "counts"

    def enter(self) -> None:
        """Make what is missing, and say which process has this slot now."""
        self.counts.mkdir(exist_ok=True)
        self._pid(self.slot).write_text(str(os.getpid()))

    def pids(self) -> dict[int, int]:
        """The processes that have entered, by slot. One that has died is among them until it is replaced."""
        paths = {slot: self._pid(slot) for slot in range(self.slots)}
        return {slot: int(path.read_text() or "0") for slot, path in paths.items() if path.exists()}

    def _pid(self, slot: int) -> Path:
        return self.folder / f"pid-{slot}"
