"""Dense weights rounded to 8 bits, integers or floats, while they are loaded."""

from typing import Literal

import torch
from torch import Tensor

from kernels.backend import Fp8Weight, QuantizedWeight
from kernels.reference import E4M3_MAX, LEAST_MAXIMUM
from model.runner_config import Rounding

GROUP = 32
"""Inputs that share a scale, as in GGUF's Q8_0."""
LARGEST: Literal[127] = 127
ROWS_AT_ONCE = 4096
"""Rows that are rounded at a time, so that their float32 copies need little memory."""


def rounded(weight: Tensor, rounding: Rounding, *, is_table: bool) -> Tensor | QuantizedWeight | Fp8Weight:
    """A weight [out, in] of a layer, or a table of tokens, as `rounding` leaves it."""
    if rounding == "8bit" and fits_8_bits(weight):
        return to_8_bits(weight)
    return to_fp8(weight) if rounding == "fp8" and not is_table else weight


def to_fp8(weight: Tensor) -> Fp8Weight:
    """The nearest weight of e4m3 numbers with a scale for each output; `weight` is [out, in]."""
    parts = []
    for rows in weight.split(ROWS_AT_ONCE):
        scales = rows.float().abs().amax(1, keepdim=True).clamp(min=LEAST_MAXIMUM) / E4M3_MAX
        parts.append(((rows.float() / scales).to(torch.float8_e4m3fn), scales))
    numbers, scales = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Fp8Weight(numbers, scales, height=1, width=weight.shape[1])


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
