"""Memory for weights, in a few large pieces, so that the system can map them with large pages.

A step reads every weight once. With pages of 4 KiB, translating addresses takes longer than reading the weights, above
all in a virtual machine.
"""

import numpy as np
import torch
from torch import Tensor

PIECE_BYTES = 32 << 20
"""Bytes allocated at a time. The part that is never written to takes no physical memory."""
ALIGNMENT = 64
"""Alignment of tensors in bytes: one cache line."""


class Pages:
    """Copies tensors into large pieces of memory, one behind the other. A piece lives as long as any tensor in it."""

    def __init__(self) -> None:
        self._piece = torch.empty(0, dtype=torch.uint8)

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor` in this memory."""
        size = tensor.numel() * tensor.itemsize
        if size == 0:
            return tensor
        if size > len(self._piece):
            self._piece = _piece(max(size, PIECE_BYTES))
        place = self._piece[:size].view(tensor.dtype).view(tensor.shape)
        self._piece = self._piece[-(-size // ALIGNMENT) * ALIGNMENT :]
        return place.copy_(tensor)


def _piece(size: int) -> Tensor:
    """Uninitialised memory [size] uint8, aligned to a cache line. NumPy requests large pages for large arrays."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return torch.from_numpy(memory[start : start + size])
