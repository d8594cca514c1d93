"""The folder that the API processes of a server share; each process has a slot in it.

A replacement gets the slot of the process that it replaces.
"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Shared:
    """The shared folder, as the process of one slot sees it."""

    folder: Path
    slot: int
    slots: int

    @property
    def places(self) -> Path:
        """The file that counts open completions, see `Places`."""
        return self.folder / "places"

    @property
    def counts(self) -> Path:
        """The folder of the counts for Prometheus, see `share_counts`."""
        return self.folder / "counts"

    def enter(self) -> None:
        """Make the missing folders, and note this process's id for its slot."""
        self.counts.mkdir(exist_ok=True)
        self._pid(self.slot).write_text(str(os.getpid()))

    def pids(self) -> dict[int, int]:
        """Process ids by slot. A dead process stays listed until it is replaced."""
        paths = {slot: self._pid(slot) for slot in range(self.slots)}
        return {slot: int(path.read_text() or "0") for slot, path in paths.items() if path.exists()}

    def _pid(self, slot: int) -> Path:
        return self.folder / f"pid-{slot}"
