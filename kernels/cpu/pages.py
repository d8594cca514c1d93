"""Memory for weights, in a few large pieces, so that they are in large pages."""

from threading import Lock

import torch
from torch import Tensor

from kernels.host_memory import large_pages

PIECE_BYTES = 32 << 20
"""Bytes allocated at a time. The part that is never written to takes no physical memory."""
ALIGNMENT = 64
"""Alignment of tensors in bytes: one cache line."""


class Pages:
    """Copies tensors into large pieces of memory, one behind the other. A piece lives as long as any tensor in it.

    Several threads may do so at once.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._piece = torch.empty(0, dtype=torch.uint8)

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor` in this memory."""
        size = tensor.numel() * tensor.itemsize
        if size == 0:
            return tensor
        with self._lock:
            if size > len(self._piece):
                self._piece = large_pages(max(size, PIECE_BYTES))
            place = self._piece[:size]
            self._piece = self._piece[-(-size // ALIGNMENT) * ALIGNMENT :]
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)
