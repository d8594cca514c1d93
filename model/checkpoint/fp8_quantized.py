"""A weight in 8-bit floats (e4m3) in blocks with scales, independent of the file format that holds it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def _values() -> npt.NDArray[np.float32]:
    """The number of each of the 256 codes s eeee mmm (Micikevicius et al., arXiv 2209.05433); s 1111 111 is NaN."""
    codes = np.arange(256)
    exponents, mantissas = codes >> 3 & 15, codes & 7
    numbers = np.where(exponents > 0, np.ldexp(8.0 + mantissas, exponents - 10), np.ldexp(1.0 * mantissas, -9))
    numbers[codes & 127 == 127] = np.nan
    values: npt.NDArray[np.float32] = np.where(codes < 128, numbers, -numbers).astype(np.float32)
    return values


VALUES = _values()


@dataclass(frozen=True, slots=True)
class Fp8Quantized:
    """A weight [out, in] in blocks of outputs and inputs, w = scale * value of the code."""

    codes: npt.NDArray[np.uint8]
    """[out, in], the bits of e4m3 numbers."""
    scales: npt.NDArray[np.float32]
    """[blocks along out, blocks along in]; the last block in each direction may be cut off."""
    block: tuple[int, int]
    """(outputs, inputs) of a whole block."""

    def dequantized(self) -> npt.NDArray[np.float32]:
        """The weight [out, in] in float32."""
        (height, width), (rows, columns) = self.block, self.codes.shape
        scales = self.scales.repeat(width, axis=1)[:, :columns]
        weight = VALUES[self.codes]
        with np.errstate(all="ignore"):  # A NaN or infinite scale gives such weights, without a warning.
            for first in range(0, rows, height):
                weight[first : first + height] *= scales[first // height]
        return weight
