"""What every reader of models offers: configuration, tokenizer data and tensors, by the names the file gives them.

It does not know which names and keys a model family uses, and what is to be made of them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from model.checkpoint.group_quantized import GroupQuantized
from model.checkpoint.sampling_defaults import SamplingDefaults
from model.checkpoint.tokenizer_data import TokenizerData

Format = Literal["gguf", "huggingface"]
DType = Literal["F32", "F16", "BF16"]

NUMPY_DTYPES: dict[DType, npt.DTypeLike] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""The array that holds each kind. NumPy has no bfloat16: those are its bits."""


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as the file has it, in memory that belongs to whoever asked for it."""

    data: npt.NDArray[Any]
    dtype: DType

    def float32(self) -> npt.NDArray[np.float32]:
        """The same numbers."""
        if self.dtype == "BF16":
            # A bfloat16 is the upper half of a float32.
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return self.data.astype(np.float32, copy=False)


class Checkpoint(Protocol):
    """A model on disk. Its structure was checked when it was opened; tensor data is read when asked for."""

    @property
    def format(self) -> Format: ...

    @property
    def name(self) -> str:
        """For people to read; not unique."""
        ...

    @property
    def config(self) -> Mapping[str, object]:
        """config.json, or the metadata of a GGUF file."""
        ...

    @property
    def tokenizer(self) -> TokenizerData:
        """Raises CheckpointError if there is none."""
        ...

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """What the makers recommend, as far as the files say. Raises CheckpointError if they say nonsense."""
        ...

    def tensor_names(self) -> Collection[str]: ...

    @property
    def missing(self) -> Mapping[str, str]:
        """Tensors that an index promises and no file has; for each, a line that says so. Not among the names."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Outermost dimension first: [out, in] of a linear layer. Raises CheckpointError if there is no such tensor."""
        ...

    def read(self, name: str) -> RawTensor:
        """The tensor's data, a new copy at each call; quantised data as float32. Raises CheckpointError."""
        ...

    def read_quantized(self, name: str) -> GroupQuantized | None:
        """A tensor [out, in] as it is quantised; None if it is not quantised in groups. Raises CheckpointError."""
        ...
