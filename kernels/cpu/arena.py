"""Memory for activations; tensors made later reuse the memory of those no longer needed."""

import weakref

import numpy as np
import torch
from torch import Tensor

from kernels.host_memory import large_pages

ALIGNMENT = 64
"""Alignment of tensors in bytes: one cache line."""
LARGE = 1 << 20
"""Bytes from which on sizes are rounded to powers of two, so that batches of any size share few pieces of memory."""
PIECE_BYTES = 32 << 20
"""Bytes taken from the system at a time. Pages that are never written to take no memory."""

Block = np.ndarray[tuple[int], np.dtype[np.uint8]]


class Arena:
    """Allocates tensors, and reuses the memory of each tensor once no reference to it is left.

    While a program is recorded, memory is reused before the first owner's numbers have been computed. This is safe,
    since operations run in the order in which their tensors were allocated.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[Block]] = {}
        self._piece = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor."""
        count = int(np.prod(shape))
        size = -(-max(1, count) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        if size > LARGE:
            size = 1 << (size - 1).bit_length()
        blocks = self._free.setdefault(size, [])
        block = blocks.pop() if blocks else self._allocate(size)
        # Torch's storage keeps this view alive for as long as any tensor uses the storage.
        view = block[: count * dtype.itemsize]
        weakref.finalize(view, blocks.append, block).atexit = False
        return torch.from_numpy(view).view(dtype).view(shape)

    def _allocate(self, size: int) -> Block:
        """A block of `size` bytes, a multiple of ALIGNMENT."""
        if size > len(self._piece):
            self._piece = large_pages(max(size, PIECE_BYTES)).numpy()
        block, self._piece = self._piece[:size], self._piece[size:]
        return block
