"""How a projection's weight lies in memory for the CPU: panels of a few outputs, group after group of inputs.

What a tile needs next is always what comes next in memory. The arithmetic is not known here.
"""

from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import OpaqueWeight, QuantizedWeight
from kernels.cpu.target import register_floats

LANES = register_floats()
"""Outputs in a panel: as many as a register has room for."""
GROUP = 32
"""Inputs in a group at most."""


@dataclass(frozen=True, slots=True)
class Format:
    """What a group of a panel holds: codes, then scales [LANES] and offsets [LANES], float16.

    w = scale * code + offset, of unsigned codes; without an offset, of signed ones of 8 bits. Or the weights themselves
    as bfloat16 (16 bits) or float32 (32).
    """

    bits: int
    group: int
    offsets: bool

    @property
    def codes_bytes(self) -> int:
        return LANES * self.group * self.bits // 8

    @property
    def group_bytes(self) -> int:
        if self.bits > 8:
            return self.codes_bytes
        return self.codes_bytes + 2 * LANES * (2 if self.offsets else 1)

    @property
    def group_input_bytes(self) -> int:
        """Of a token's numbers as the tile reads them: integers of 16 bits, or float32."""
        return self.group * (2 if self.bits <= 8 else 4)


@dataclass(frozen=True, slots=True)
class Panels(OpaqueWeight):
    """A weight [rows, columns] in panels. What is beyond its rows is 0."""

    data: Tensor
    """uint8 [panels, groups, format.group_bytes]."""
    form: Format
    rows: int
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.rows, self.columns


def pack_quantized(weight: QuantizedWeight) -> Panels:
    """The same weight in panels. Groups larger than `GROUP` are cut."""
    rows, columns = weight.shape
    group = min(weight.group_size, GROUP)
    repeat = weight.group_size // group
    scales = _panelled(weight.scales.repeat_interleave(repeat, 1), 1)
    signed = weight.bits == 8 and weight.zero == 128 and weight.offsets is None
    form = Format(weight.bits, group, not signed)
    # A code means scale * (code - zero) + offset, of which the tile knows one offset.
    offsets = -weight.zero * weight.scales.float() + (0 if weight.offsets is None else weight.offsets.float())
    parts = [_nibbles(weight.codes, group) if weight.bits == 4 else _bytes(weight.codes, group, signed)]
    parts.append(scales.view(torch.uint8))
    if form.offsets:
        parts.append(_panelled(offsets.half().repeat_interleave(repeat, 1), 1).view(torch.uint8))
    return Panels(torch.cat(parts, dim=-1), form, rows, columns)


def pack_dense(weight: Tensor) -> Panels:
    """A weight [out, in] in bfloat16 if it loses nothing by that, or else in float32."""
    rows, columns = weight.shape
    short = weight.bfloat16()
    exact = weight.dtype == torch.bfloat16 or torch.equal(short.to(weight.dtype), weight)
    stored = short if exact else weight.float()
    group = gcd(columns, GROUP)
    data = _panelled(stored, group).view(torch.uint8)
    return Panels(data, Format(8 * stored.itemsize, group, False), rows, columns)


def _panelled(matrix: Tensor, group: int) -> Tensor:
    """[rows, groups * group] -> [panels, groups, group * LANES], the numbers of one input side by side."""
    padded = F.pad(matrix, (0, 0, 0, -len(matrix) % LANES))
    return padded.view(len(padded) // LANES, LANES, -1, group).permute(0, 2, 3, 1).flatten(2).contiguous()


def _bytes(codes: Tensor, group: int, signed: bool) -> Tensor:
    """uint8 [rows, columns] -> [panels, groups, group * LANES]: two inputs of each output side by side."""
    padded = F.pad(codes ^ 0x80 if signed else codes, (0, 0, 0, -len(codes) % LANES))
    return padded.view(len(padded) // LANES, LANES, -1, group // 2, 2).permute(0, 2, 3, 1, 4).flatten(2)


def _nibbles(packed: Tensor, group: int) -> Tensor:
    """uint8 [rows, columns / 2] -> [panels, groups, group / 2 * LANES].

    Four inputs of each output stand side by side; a group's first half is in the low halves of bytes, its second half
    in the high ones.
    """
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)
    padded = F.pad(codes, (0, 0, 0, -len(codes) % LANES))
    quads = padded.view(len(padded) // LANES, LANES, -1, 2, group // 8, 4).permute(0, 2, 3, 4, 1, 5)
    return (quads[:, :, 0] | quads[:, :, 1] << 4).flatten(2)
