"""Brings FP8 parts of one projection to common blocks and stacks them. Names and layouts are not known here."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.backend import Fp8Weight
from model.checkpoint.fp8_quantized import Fp8Quantized
from model.loading.quantized_stack import RowOrder

SMALLEST_WIDTH = 32
"""The smallest number of inputs that share a scale in a `Fp8Weight`."""


def stack_fp8(parts: Sequence[Fp8Quantized], order: RowOrder, device: torch.device) -> Fp8Weight | None:
    """One weight [sum of outs, in] from `parts`, each [out, in], on `device`; None if the width of blocks is no common
    one that the weight may have.

    Codes and scales keep their numbers. Blocks become as high as every part and its place allow: one row, where rows
    change their order.
    """
    widths, columns = {part.block[1] for part in parts}, parts[0].codes.shape[1]
    width = widths.pop()
    if widths or not (width == columns or (width >= SMALLEST_WIDTH and width.bit_count() == 1)):
        return None
    places = [order(index, torch.arange(len(part.codes))).flatten() for index, part in enumerate(parts)]
    in_order = all(torch.equal(place, torch.arange(len(place))) for place in places)
    # Every part but the last one must end with a whole block.
    ends = [len(part.codes) for part in parts[:-1]]
    height = math.gcd(*(part.block[0] for part in parts), *ends) if in_order else 1

    def scales(part: Fp8Quantized) -> Tensor:
        repeated = part.scales.repeat(part.block[0] // height, axis=0)
        return torch.from_numpy(repeated[: -(-len(part.codes) // height)]).to(device)

    def stacked(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([rows if in_order else rows[place] for rows, place in zip(tensors, places, strict=True)])

    return Fp8Weight(
        stacked([torch.from_numpy(part.codes).to(device) for part in parts]).view(torch.float8_e4m3fn),
        stacked([scales(part) for part in parts]),
        height,
        width,
    )
