"""The interface of a model on disk: configuration, tokenizer data and tensors, under the file's own names.

A reader does not know which keys and tensors a model family has, nor their meaning.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from model.checkpoint.fp8_quantized import Fp8Quantized
from model.checkpoint.group_quantized import GroupQuantized
from model.checkpoint.sampling_defaults import SamplingDefaults
from model.checkpoint.tokenizer_data import TokenizerData

Format = Literal["gguf", "huggingface"]
DType = Literal["F32", "F16", "BF16"]
Quantized = GroupQuantized | Fp8Quantized
"""The forms in which a quantised tensor can be read."""

NUMPY_DTYPES: dict[DType, npt.DTypeLike] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""NumPy dtype of the array that holds each kind. NumPy has no bfloat16, so its bits are held as uint16."""


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor's numbers as stored in the file, in an array that belongs to the caller."""

    data: npt.NDArray[Any]
    dtype: DType

    def float32(self) -> npt.NDArray[np.float32]:
        """The same numbers in float32."""
        if self.dtype == "BF16":
            # A bfloat16 is the upper half of a float32.
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return self.data.astype(np.float32, copy=False)


class Checkpoint(Protocol):
    """A model on disk. Opening it has checked its structure; each tensor is read when it is asked for."""

    @property
    def format(self) -> Format: ...

    @property
    def name(self) -> str:
        """A name for people to read; it need not be unique."""
        ...

    @property
    def config(self) -> Mapping[str, object]:
        """The contents of config.json, or the metadata of a GGUF file."""
        ...

    @property
    def tokenizer(self) -> TokenizerData:
        """The data of the model's tokenizer. Raises CheckpointError if there is none."""
        ...

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """The sampling parameters that the model's files recommend. Raises CheckpointError for an impossible value."""
        ...

    def tensor_names(self) -> Collection[str]: ...

    @property
    def missing(self) -> Mapping[str, str]:
        """Tensors that the index names and no file has, each with a line of error; `tensor_names` is without them."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, [out, in] for a linear layer. Raises CheckpointError if there is no such tensor."""
        ...

    def read(self, name: str) -> RawTensor:
        """A new copy of a tensor's numbers, dequantised to float32 if they are quantised. Raises CheckpointError."""
        ...

    def read_quantized(self, name: str) -> Quantized | None:
        """A tensor [out, in] in quantised form; None if it has none that can be kept. Raises CheckpointError."""
        ...
