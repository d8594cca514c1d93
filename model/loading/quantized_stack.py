"""Brings quantised parts of one projection to a common form and stacks them. Names and layouts are not known here."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.backend import QuantizedWeight
from model.checkpoint.group_quantized import GroupQuantized

SMALLEST_GROUP = 16
"""The smallest group size that a `QuantizedWeight` may have."""

RowOrder = Callable[[int, Tensor], Tensor]
"""Reorders the rows [out, ...] of the part with a given index; the result may have another shape."""


def stack_quantized(parts: Sequence[GroupQuantized], order: RowOrder, device: torch.device) -> QuantizedWeight | None:
    """One weight [sum of outs, in] from `parts`, each [out, in], on `device`; None if a common group is too small.

    The stack has 8 bits if any part has, offsets if any part has, and groups that divide the groups of all parts. Codes
    keep their meaning; scales are rounded to float16, and offsets stay as they are.
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
        offsets=offsets,
        zero=0 if shifted else 1 << (bits - 1),
        bits=bits,
        group_size=group_size,
    )


def _common_group_size(sizes: Sequence[int]) -> int:
    """The largest power of two that divides all sizes."""
    divisor = math.gcd(*sizes)
    return divisor & -divisor


def _centred_codes(part: GroupQuantized, bits: int) -> npt.NDArray[np.uint8]:
    """The codes [out, in] of a part without offsets, shifted to the zero of codes with `bits` bits."""
    return part.codes if part.bits == bits else part.codes + np.uint8((1 << (bits - 1)) - part.zero)


def _offsets(part: GroupQuantized) -> npt.NDArray[np.float32]:
    """The number that a code of 0 stands for in each group, [out, groups].

    It follows from the scale that is kept, which is rounded: the code of zero stands for 0.
    """
    if part.offsets is not None:
        return part.offsets
    return part.scales.astype(np.float16).astype(np.float32) * np.float32(-part.zero)


def _regrouped(numbers: npt.NDArray[np.float32], part: GroupQuantized, group_size: int) -> npt.NDArray[np.float32]:
    """A part's numbers [out, groups], repeated for groups that are cut into smaller ones of `group_size`."""
    return np.repeat(numbers, part.group_size // group_size, axis=1)
