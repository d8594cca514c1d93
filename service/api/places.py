"""How many completions are open in each of several processes: a file that all of them map.

A process counts its own and may read the others'. What a place is for is not known here.
"""

import fcntl
import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BYTES = 8


class Places:
    """One process's part of the counts."""

    def __init__(self, file: Path, slot: int, slots: int) -> None:
        """The process with this of all `slots` begins with nothing, whatever the one before it left.

        The first of all makes the file.
        """
        size = slots * _BYTES
        self._slot = slot
        self._file = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, size)
        self._counts = memoryview(mmap.mmap(self._file, size)).cast("q")
        self._counts[self._slot] = 0

    @property
    def taken(self) -> int:
        """By this process."""
        return self._counts[self._slot]

    @property
    def taken_by_all(self) -> int:
        """By all processes, as far as they have got: without a lock."""
        return sum(self._counts)

    def take(self, count: int, capacity: int) -> bool:
        """Take `count` places if no more than `capacity` are taken then by all processes together."""
        with self._alone():
            fits = sum(self._counts) + count <= capacity
            if fits:
                self._counts[self._slot] += count
        return fits

    def give(self, count: int) -> None:
        """Give back places that were taken. Needs no lock: nobody else writes this count."""
        self._counts[self._slot] -= count

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the others out for a moment; the kernel lets them in if this process dies meanwhile."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
