"""A quantised tensor as integer codes in groups with scales, independent of the file format that packed them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class GroupQuantized:
    """A weight [out, in] in groups of neighbours along `in`, w = scale * (code - zero) + offset."""

    codes: npt.NDArray[np.uint8]
    """[out, in], one code in each byte, below 2**bits."""
    scales: npt.NDArray[np.float32]
    """[out, groups], exactly as the file defines them."""
    offsets: npt.NDArray[np.float32] | None
    """[out, groups]; None where codes are centred on `zero` and every offset is 0."""
    bits: Literal[4, 8]

    @property
    def zero(self) -> int:
        """The code that is subtracted: half the range, 8 or 128, without offsets; 0 with offsets."""
        return 1 << (self.bits - 1) if self.offsets is None else 0

    @property
    def group_size(self) -> int:
        size: int = self.codes.shape[1] // self.scales.shape[1]
        return size

    def dequantized(self) -> npt.NDArray[np.float32]:
        """The weight [out, in] in float32."""
        weight = self.codes.astype(np.float32)
        grouped = weight.reshape(*self.scales.shape, self.group_size)
        with np.errstate(all="ignore"):  # A NaN or infinite scale gives such weights, without a warning.
            grouped -= self.zero
            grouped *= self.scales[..., None]
            if self.offsets is not None:
                grouped += self.offsets[..., None]
        return weight
