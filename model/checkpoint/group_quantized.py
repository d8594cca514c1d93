"""A quantised tensor as integers in groups with scales. It does not know how a file packs them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class GroupQuantized:
    """A weight [out, in] in groups of neighbours along `in`: w = scale * (code - zero) + offset."""

    codes: npt.NDArray[np.uint8]
    """[out, in], one a byte, each below 2**bits."""
    scales: npt.NDArray[np.float32]
    """[out, groups]; exactly what the file's numbers say."""
    offsets: npt.NDArray[np.float32] | None
    """As `scales`; None where codes are centred on `zero`."""
    bits: Literal[4, 8]

    @property
    def zero(self) -> int:
        """The code that stands for 0 where there are no offsets; 0 where there are."""
        return 1 << (self.bits - 1) if self.offsets is None else 0

    @property
    def group_size(self) -> int:
        size: int = self.codes.shape[1] // self.scales.shape[1]
        return size

    def dequantized(self) -> npt.NDArray[np.float32]:
        """The weight [out, in]."""
        weight = self.codes.astype(np.float32)
        grouped = weight.reshape(*self.scales.shape, self.group_size)
        with np.errstate(all="ignore"):  # A scale that is no number makes weights that are none; that is no warning.
            grouped -= self.zero
            grouped *= self.scales[..., None]
            if self.offsets is not None:
                grouped += self.offsets[..., None]
        return weight
