"""Memory that is free, and that the allocator keeps. Standard library only."""

import ctypes


def return_free_memory() -> None:
    """Give the system back what the allocator keeps of memory that is free, where it is glibc's.

    Reading a model's files takes tens of megabytes for a while.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
