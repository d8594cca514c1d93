"""Reads tensors by name and shape, one at a time. The reader does not know their use in a model."""

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.checkpoint.checkpoint import Checkpoint, Quantized
from model.checkpoint.errors import CheckpointError, label


class TensorReader(Protocol):
    """Source of the tensors of a model that has one dtype and one device.

    `check`, `read`, `load` and `read_quantized` raise CheckpointError if there is no tensor `name`, or if its shape is
    not `shape`.
    """

    @property
    def device(self) -> torch.device:
        """The model's device."""
        ...

    def empty(self, *shape: int) -> Tensor:
        """An uninitialised tensor in the dtype and on the device of the model."""
        ...

    def has(self, name: str) -> bool: ...

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise the error that reading the tensor would raise, without reading it."""
        ...

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor in host memory, in the dtype in which it is stored; a quantised one in float32."""
        ...

    def load(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor in the dtype and on the device of the model."""
        ...

    def read_quantized(self, name: str, shape: tuple[int, int]) -> Quantized | None:
        """The quantised tensor [out, in] in host memory; None if it is dense, or in no form that can be kept."""
        ...


class CheckpointReader:
    """`TensorReader` of a checkpoint's tensors, which keeps account of the tensors that were read."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._unread = set(checkpoint.tensor_names())

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self.device)

    def has(self, name: str) -> bool:
        return name in self._checkpoint.tensor_names()

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        actual = self._checkpoint.shape(name)
        if actual != shape:
            raise self._error(
                f"the tensor {label(name)} has the shape {actual}, and the configuration asks for {shape}"
            )

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        self._take(name, shape)
        raw = self._checkpoint.read(name)
        if raw.dtype == "BF16":
            return torch.from_numpy(raw.data.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(raw.data)

    def load(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.read(name, shape).to(self.device, self._dtype)

    def read_quantized(self, name: str, shape: tuple[int, int]) -> Quantized | None:
        self._take(name, shape)
        return self._checkpoint.read_quantized(name)

    def refuse_missing(self, ignored: Sequence[str]) -> None:
        """Raise CheckpointError if the index names a tensor that no file has and no pattern in `ignored` matches."""
        for name, line in self._checkpoint.missing.items():
            if not _matches(name, ignored):
                raise CheckpointError(line)

    def refuse_unread(self, ignored: Sequence[str]) -> None:
        """Raise CheckpointError if the file has a tensor that was not read and that no pattern in `ignored` matches."""
        strays = sorted(name for name in self._unread if not _matches(name, ignored))
        if strays:
            raise self._error(f"{len(strays)} tensors have no place in this model, {label(strays[0])} first")

    def _take(self, name: str, shape: tuple[int, ...]) -> None:
        self.check(name, shape)
        self._unread.discard(name)

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{label(self._checkpoint.name)}: {what}")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
