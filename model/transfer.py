"""Copies between the host and a device, and times on the device, without making the host wait.

A CUDA device executes the work in its current stream in order, some time after the host queued it. On a CPU nothing is
copied, and times are readings of the clock.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from model.array import Array

ALIGNMENT = 16
"""Alignment of each staged tensor in bytes; for pointers with less, Triton would compile kernels a second time."""


def host_tensor(numbers: Sequence[float], kind: DTypeLike) -> Tensor:
    """A tensor in host memory of a list of numbers, by NumPy, which reads one several times as fast as torch does."""
    return torch.from_numpy(np.array(numbers, kind))


def stage(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies on `device` of the host's `tensors`, made in one transfer; on a CPU, the tensors themselves.

    The transfer starts from pinned memory. From ordinary memory, as in `torch.tensor(..., device=...)`, the host would
    wait until the device reached the copy in its stream. Torch reuses a pinned buffer only once its transfer has ended.
    """
    if device.type == "cpu":
        return list(tensors)
    sizes = [tensor.numel() * tensor.itemsize for tensor in tensors]
    begins = [0, *accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]
    buffer = torch.empty(begins[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")

    def parts(whole: Tensor) -> list[Tensor]:
        return [
            whole[begin : begin + size].view(tensor.dtype).view(tensor.shape)
            for begin, size, tensor in zip(begins, sizes, tensors, strict=False)
        ]

    for part, tensor in zip(parts(buffer), tensors, strict=True):
        part.copy_(tensor)
    return parts(buffer.to(device, non_blocking=True))


def stage_named(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """`stage` for named tensors; the result has the same names."""
    return dict(zip(tensors, stage([*tensors.values()], device), strict=True))


def to_host(tensor: Tensor) -> Tensor:
    """A copy of `tensor` in host memory, complete once a `Moment` created after this call has passed."""
    if tensor.device.type != "cuda":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def to_array(tensor: Tensor) -> Array:
    """A copy of a tensor in host memory, for the other side of the contract. Waits for the device."""
    host = tensor.to("cpu", torch.float32).contiguous()
    return Array(tuple(host.shape), host.numpy().astype("<f4", copy=False).tobytes())


class Moment:
    """The moment at which a device has finished all work that was queued before this object was created."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        self._clock = 0.0
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))
        else:
            self._clock = time.perf_counter()

    def wait(self) -> None:
        """Make the host wait until the moment has passed. Raises torch.AcceleratorError if the device failed."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, earlier: "Moment") -> float:
        """Seconds from `earlier` to this moment, on the device's own clock if it has one. Both must have passed."""
        if self._event is not None and earlier._event is not None:
            milliseconds: float = earlier._event.elapsed_time(self._event)
            return milliseconds / 1000
        return self._clock - earlier._clock
