"""Memory that a process holds and does not need. Standard library only."""

import ctypes
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

LARGE_BYTES = 128 << 10
"""Size from which on a piece of memory is worth a call of the system to get it, and another to give it back."""
_M_MMAP_THRESHOLD = -3

MAPPINGS = Path("/proc/self/smaps")
"""Linux's account of a process's memory: for each mapping a line with its addresses, then its fields."""
_MAPPING = re.compile(r"^(?=[0-9a-f]+-[0-9a-f]+ )", re.MULTILINE)
_FILE_TO_READ = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-\S\S \S+ \S+ [1-9]\d* +/(?!dev/)")
_WRITTEN = re.compile(r"^(?:Anonymous|Swap): +[1-9]", re.MULTILINE)


def return_large_pieces_at_once() -> None:
    """Have glibc's allocator give large pieces of memory back as soon as they are freed, for the rest of the process.

    By itself it takes pieces of up to 32 MB for small ones after the first was freed, and keeps what loading used.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def return_free_memory() -> None:
    """Give the system back what this process holds and does not need; nothing is lost.

    Reading a model's files takes tens of megabytes for a while, and glibc's allocator keeps them. Importing torch reads
    over a hundred megabytes of libraries, and few are needed again: Linux maps their pages anew when they are.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    for begin, end in _files_to_read():
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def _files_to_read() -> Iterator[tuple[int, int]]:
    """Begin and end of the addresses of each mapped file whose pages are as they were read."""
    if not MAPPINGS.exists():
        return
    for mapping in _MAPPING.split(MAPPINGS.read_text(errors="replace")):
        place = _FILE_TO_READ.match(mapping)
        # A library's relocations were written before its loader protected their pages.
        if place and not _WRITTEN.search(mapping):
            yield int(place[1], 16), int(place[2], 16)
