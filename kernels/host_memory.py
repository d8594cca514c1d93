"""Memory of a CPU in large pages.

A step reads every weight, and keys and values all over the cache. With pages of 4 KiB, translating addresses takes
longer than reading, above all in a virtual machine.
"""

import mmap

import torch
from torch import Tensor


def large_pages(size: int) -> Tensor:
    """Memory [size] uint8 of its own, in large pages where the system has them. Raises MemoryError.

    An allocator may take memory from a heap, whose pages are small. Pages that are never written to take no memory.
    """
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise MemoryError(f"the system has no {size} bytes") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
