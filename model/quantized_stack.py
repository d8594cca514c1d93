"""Quantised parts of one projection, brought to a common form and stacked. It knows nothing of names and layouts."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.backend import QuantizedWeight
from model.checkpoint.group_quantized import GroupQuantized

SMALLEST_GROUP = 16
"""Of a `QuantizedWeight`."""

RowOrder = Callable[[int, Tensor], Tensor]
"""From a part's index and what it has for each output, [out, ...], to the same in another order and maybe shape."""


def stack_quantized(parts: Sequence[GroupQuantized], order: RowOrder, device: torch.device) -> QuantizedWeight | None:
    """The parts, whose inputs are the same, with their outputs one after another; None if their groups are too small.

    8 bits and offsets are what any part has, groups are as fine as the finest. Codes are as they were; scales and
    offsets are rounded to float16.
    """
    group_size = _common_group_size([part.group_size for part in parts])
    if group_size < SMALLEST_GROUP:
        return None
    bits = max(part.bits for part in parts)
    shifted = any(part.offsets is not None for part in parts)

    def stacked(arrays: Sequence[npt.NDArray[np.generic]]) -> Tensor:
        tensors = [torch.from_numpy(array).to(device) for array in arrays]
        return torch.cat([order(index, rows).reshape(rows.shape) for index, rows in enumerate(tensors)])

    codes = stacked([part.codes if shifted else _centred_codes(part, bits) for part in parts])
    offsets = stacked([_regrouped(_offsets(part), part, group_size) for part in parts]) if shifted else None
    return QuantizedWeight(
        codes=codes[:, ::2] | codes[:, 1::2] << 4 if bits == 4 else codes,
        scales=stacked([_regrouped(part.scales, part, group_size) for part in parts]).half(),
        offsets=None if offsets is None else offsets.half(),
        zero=0 if shifted else 1 << (bits - 1),
        bits=bits,
        group_size=group_size,
    )


def _common_group_size(sizes: Sequence[int]) -> int:
    """The largest power of two that divides all."""
    divisor = math.gcd(*sizes)
    return divisor & -divisor


def _centred_codes(part: GroupQuantized, bits: int) -> npt.NDArray[np.uint8]:
    """The codes of a part without offsets, centred as those of `bits` bits are."""
    return part.codes if part.bits == bits else part.codes + np.uint8((1 << (bits - 1)) - part.zero)


def _offsets(part: GroupQuantized) -> npt.NDArray[np.float32]:
    """What a code of 0 means in each group."""
    return part.scales * np.float32(-part.zero) if part.offsets is None else part.offsets


def _regrouped(numbers: npt.NDArray[np.float32], part: GroupQuantized, group_size: int) -> npt.NDArray[np.float32]:
    """A part's numbers [out, groups] for its groups cut into smaller ones."""
    return np.repeat(numbers, part.group_size // group_size, axis=1)
