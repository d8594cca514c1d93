"""Memory for the activations of a recorded program: what one operation has done with, a later one gets."""

import weakref

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes: a cache line."""


class Arena:
    """Gives out tensors in memory of its own, and takes back that of those that nobody holds any more.

    As the operations run in the order in which their tensors were asked for, the memory may have a new owner in the
    program while the old one's numbers are still to come.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray[tuple[int], np.dtype[np.uint8]]]] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor that nobody has written to."""
        count = int(np.prod(shape))
        size = -(-max(1, count) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        blocks = self._free.setdefault(size, [])
        block = blocks.pop() if blocks else np.empty(size + ALIGNMENT, np.uint8)
        start = -block.ctypes.data % ALIGNMENT
        # Torch's storage holds this view as long as any tensor has a view of the storage.
        view = block[start : start + count * dtype.itemsize]
        weakref.finalize(view, blocks.append, block).atexit = False
        return torch.from_numpy(view).view(dtype).view(shape)
