"""Memory for weights: a few large pieces, which the system may map with large pages.

A step reads every weight once. In pages of 4 KiB, looking up where they lie takes longer than reading them, above all
in a virtual machine.
"""

import numpy as np
import torch
from torch import Tensor

PIECE_BYTES = 32 << 20
"""What is asked of the system at once. What nobody writes to takes no memory."""
ALIGNMENT = 64
"""Bytes: a cache line."""


class Pages:
    """Copies tensors into memory of its own, one behind the other. A piece lives as long as any tensor in it."""

    def __init__(self) -> None:
        self._piece = torch.empty(0, dtype=torch.uint8)

    def keep(self, tensor: Tensor) -> Tensor:
        """The same numbers, here."""
        size = tensor.numel() * tensor.itemsize
        if size == 0:
            return tensor
        if size > len(self._piece):
            self._piece = _piece(max(size, PIECE_BYTES))
        place = self._piece[:size].view(tensor.dtype).view(tensor.shape)
        self._piece = self._piece[-(-size // ALIGNMENT) * ALIGNMENT :]
        return place.copy_(tensor)


def _piece(size: int) -> Tensor:
    """uint8 [size] from the start of a cache line. For this much NumPy asks the system for large pages."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return torch.from_numpy(memory[start : start + size])
