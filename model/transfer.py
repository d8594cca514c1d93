"""What passes between the host and a device without the host waiting for it. It does not know what the numbers mean.

A CUDA device works through its current stream in order, later than the host asks it to. On a CPU the same calls are
plain copies and readings of the clock.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes. A kernel is compiled a second time for pointers that are less aligned."""


def stage(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies on `device` of the host's `tensors`, in one transfer.

    By way of pinned memory: a copy from any other, such as `torch.tensor(..., device=...)` makes, holds the host up
    until the device has come to it. The allocator of pinned memory reuses a buffer only once its transfer has ended.
    On a CPU they are the tensors themselves.
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
    """`stage`, by names."""
    return dict(zip(tensors, stage([*tensors.values()], device), strict=True))


def fetch(tensor: Tensor) -> Tensor:
    """A copy on the host. It is there once a `Moment` that was taken after this call has passed."""
    if tensor.device.type != "cuda":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


class Moment:
    """The point that a device's work has come to once it has done all that it was asked to do so far."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        self._clock = 0.0
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))
        else:
            self._clock = time.perf_counter()

    def wait(self) -> None:
        """Let the host wait until it has passed. Raises what went wrong on the device."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, earlier: "Moment") -> float:
        """By the device's own clock, if it has one. Both must have passed."""
        if self._event is not None and earlier._event is not None:
            milliseconds: float = earlier._event.elapsed_time(self._event)
            return milliseconds / 1000
        return self._clock - earlier._clock
