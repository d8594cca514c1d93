"""Dense weights rounded to 8 bits while they are loaded."""

from typing import Literal

import torch
from torch import Tensor

from kernels.backend import QuantizedWeight

GROUP = 32
"""Inputs that share a scale, as in GGUF's Q8_0."""
LARGEST: Literal[127] = 127
ROWS_AT_ONCE = 4096
"""Rows that are rounded at a time, so that their float32 copies need little memory."""


def fits_8_bits(weight: Tensor) -> bool:
    """Whether a weight [out, in] consists of whole groups."""
    return weight.shape[1] % GROUP == 0


def to_8_bits(weight: Tensor) -> QuantizedWeight:
    """The nearest weight with 8-bit codes and a float16 scale for each group of inputs; `weight` is [out, in]."""
    parts = [_round(rows) for rows in weight.split(ROWS_AT_ONCE)]
    codes, scales = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return QuantizedWeight(codes, scales, None, zero=128, bits=8, group_size=GROUP)


def _round(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [rows, in] uint8 and scales [rows, in / GROUP] float16."""
    groups = rows.float().unflatten(1, (-1, GROUP))
    scales = (groups.abs().amax(-1) / LARGEST).half()
    # A scale that float16 rounds down would lead beyond the largest code.
    steps = scales.float().clamp(min=2.0**-24)[..., None]
    codes = (groups / steps).round().clamp(-LARGEST, LARGEST) + 128
    return codes.flatten(1).to(torch.uint8), scales
