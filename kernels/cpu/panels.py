"""Layout of a projection's weight in memory: panels of `LANES` outputs, each a sequence of groups of inputs.

A tile reads the groups of its panel in the order in which they lie. The arithmetic stands in `tile.py`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import OpaqueWeight, QuantizedWeight
from kernels.cpu.target import register_floats

LANES = register_floats()
"""Number of outputs in a panel: the float32 numbers that a register holds."""
RANKED_PANELS = 32
"""Panels whose highest rank (`ranks.py`) can take the place of their outputs."""
GROUP = 32
"""Limit of inputs in a group."""
CODE_SHIFTS = {4: 6, 8: 2}
"""Places by which codes are moved to make fractions of float16 numbers, by their bits; see `matrix_weights.py`."""


@dataclass(frozen=True, slots=True)
class Format:
    """The contents of one group of a panel.

    With 4 or 8 bits: codes [group * LANES], scales [LANES] float16, and, unless `offsets` is 0, offsets [LANES]. Codes
    are unsigned with offsets, w = scale * code + offset; without, they are signed and have 8 bits. With 16 or 32 bits:
    the weights themselves, in bfloat16 or float32.
    """

    bits: int
    group: int
    """Number of inputs."""
    offsets: int
    """Bytes of an offset: 2 for float16 and 4 for float32, or 0 if there are none."""

    @property
    def codes_bytes(self) -> int:
        """Bytes of the codes, or of the weights, in a group."""
        return LANES * self.group * self.bits // 8

    @property
    def offsets_place(self) -> int:
        """Bytes of the codes and scales in a group, behind which the offsets lie."""
        return self.codes_bytes + 2 * LANES

    @property
    def group_bytes(self) -> int:
        """Bytes of a group."""
        if self.bits > 8:
            return self.codes_bytes
        return self.offsets_place + LANES * self.offsets

    @property
    def group_input_bytes(self) -> int:
        """Bytes of a token's activations for one group: 16-bit codes for weights of up to 8 bits, else float32."""
        return self.group * (2 if self.bits <= 8 else 4)


@dataclass(frozen=True, slots=True)
class Panels(OpaqueWeight):
    """A weight [rows, columns] in panels; the last panel is padded with zeros."""

    data: Tensor
    """[panels, groups, form.group_bytes] uint8."""
    form: Format
    rows: int
    columns: int
    exponent: int = 0
    """Power of 2 by which weights of up to 8 bits may be multiplied while they are float16 numbers."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns), which are (out, in)."""
        return self.rows, self.columns


def pack_quantized(weight: QuantizedWeight) -> Panels:
    """A quantised weight in panels. Groups larger than `GROUP` are cut into smaller ones."""
    rows, columns = weight.shape
    group = min(weight.group_size, GROUP)
    repeat = weight.group_size // group
    scales = _panelled(weight.scales.repeat_interleave(repeat, 1), 1)
    signed = weight.bits == 8 and weight.zero == 128 and weight.offsets is None
    # w = scale * (code - zero) + offset has two constants; the tile reads one offset, -scale * zero + offset.
    offsets = -weight.zero * weight.scales.float() + (0 if weight.offsets is None else weight.offsets.float())
    exact = torch.equal(offsets.half().float(), offsets)
    form = Format(weight.bits, group, 0 if signed else 2 if exact else 4)
    parts = [_nibbles(weight.codes, group) if weight.bits == 4 else _bytes(weight.codes, group, signed)]
    parts.append(scales.view(torch.uint8))
    if form.offsets:
        stored = offsets.half() if exact else offsets
        parts.append(_panelled(stored.repeat_interleave(repeat, 1), 1).view(torch.uint8))
    exponent = _exponent(weight.bits, weight.scales.float(), offsets)
    return Panels(torch.cat(parts, dim=-1), form, rows, columns, exponent)


def _exponent(bits: int, scales: Tensor, offsets: Tensor) -> int:
    """The largest power of 2, from -20 to 4, with which scales and weights are in the range of float16 numbers.

    Scales are also multiplied by 2^(24 - CODE_SHIFTS[bits]).
    """
    scale, offset = scales.abs().max().item(), offsets.abs().max().item()
    largest = max(scale * 2.0 ** (24 - CODE_SHIFTS[bits]), scale * 2**bits + offset, 2.0**-24)
    return max(-20, min(4, 15 - math.frexp(largest)[1]))


def pack_dense(weight: Tensor) -> Panels:
    """A dense weight [out, in] in panels: in bfloat16 if that is exact, else in float32."""
    rows, columns = weight.shape
    short = weight.bfloat16()
    exact = weight.dtype == torch.bfloat16 or torch.equal(short.to(weight.dtype), weight)
    stored = short if exact else weight.float()
    group = math.gcd(columns, GROUP)
    data = _panelled(stored, group).view(torch.uint8)
    return Panels(data, Format(8 * stored.itemsize, group, 0), rows, columns)


def _panelled(matrix: Tensor, group: int) -> Tensor:
    """[rows, groups * group] -> [panels, groups, group * LANES], with the outputs of one input side by side."""
    padded = F.pad(matrix, (0, 0, 0, -len(matrix) % LANES))
    return padded.view(len(padded) // LANES, LANES, -1, group).permute(0, 2, 3, 1).flatten(2).contiguous()


def _bytes(codes: Tensor, group: int, signed: bool) -> Tensor:
    """uint8 [rows, columns] -> [panels, groups, group * LANES], with two inputs of each output side by side."""
    padded = F.pad(codes ^ 0x80 if signed else codes, (0, 0, 0, -len(codes) % LANES))
    return padded.view(len(padded) // LANES, LANES, -1, group // 2, 2).permute(0, 2, 3, 1, 4).flatten(2)


def _nibbles(packed: Tensor, group: int) -> Tensor:
    """uint8 [rows, columns / 2] -> [panels, groups, group / 2 * LANES].

    Four inputs of each output stand side by side. The first half of a group's inputs is in the low halves of bytes, the
    second half in the high halves.
    """
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)
    padded = F.pad(codes, (0, 0, 0, -len(codes) % LANES))
    quads = padded.view(len(padded) // LANES, LANES, -1, 2, group // 8, 4).permute(0, 2, 3, 4, 1, 5)
    return (quads[:, :, 0] | quads[:, :, 1] << 4).flatten(2)
