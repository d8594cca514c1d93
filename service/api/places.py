"""Places taken in each of several processes, counted in a file that all of them map into memory.

A process counts its own and may read the others' counts. It is not known here that a place stands for an open
completion.
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
    """The counts, as the process of one slot sees them."""

    def __init__(self, file: Path, slot: int, slots: int) -> None:
        """`slot` is the index of this process among all `slots`; its count begins anew at 0.

        The file is made if it is missing.
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
        """Places taken by this process."""
        return self._counts[self._slot]

    @property
    def taken_by_all(self) -> int:
        """Places taken by all processes; read without a lock, so it may be a moment old."""
        return sum(self._counts)

    def take(self, count: int, capacity: int) -> bool:
        """Take `count` places, unless all processes together would then have more than `capacity`; True if taken."""
        with self._alone():
            fits = sum(self._counts) + count <= capacity
            if fits:
                self._counts[self._slot] += count
        return fits

    def give(self, count: int) -> None:
        """Give back `count` places. Needs no lock, because nobody else writes this count."""
        self._counts[self._slot] -= count

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the other processes out for a moment; the kernel ends the lock if this process dies meanwhile."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
