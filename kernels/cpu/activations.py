"""The form of activations for a product with weights in panels, and how large they are. `rounding.py` makes it."""

from dataclasses import dataclass

from kernels.cpu.panels import LANES, Format
from kernels.cpu.target import REGISTER_ROWS, matrix_unit

DEPTH = 32
"""Inputs in a step of the matrix unit's sums: bfloat16 numbers in a row of a register."""
TOKENS = REGISTER_ROWS
"""Limit of tokens in a register of the matrix unit."""
MOST_ROWS = 512
"""Limit of tokens that are multiplied with weights unpacked for the matrix unit before these are unpacked again."""
TILE = 8
"""Limit of tokens that are multiplied at once without the matrix unit."""
UNIT_FROM = 5
"""Number of tokens from which on the matrix unit multiplies with weights of up to 8 bits.

It wants them unpacked to bfloat16, which for few tokens takes longer than all the rest: on two threads of a Xeon a step
of SmolLM2-135M takes 12 ms with it for 1 token as for 4, and 4.4 and 9 ms without it; 8 tokens take 14 and 16 ms.
"""
LOW_BITS = {4: 4, 8: 8}
"""Number of bits in the lower part of an activation's code, by the weights' bits; the upper part has 8 bits.

Codes of 12 bits err less than weights of 4 bits do, and both of their parts are multiplied as bytes.
"""
SUMS_BYTES = 8
"""Bytes of a token's sums for one group: two float32 numbers, the scale and the scale times the sum of codes."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """The form of activations for a product with weights of `form`.

    For the matrix unit they are bfloat16 numbers [tiles, columns / DEPTH, parts, TOKENS, DEPTH], where a tile has
    TOKENS rows. Else they are integers [tiles, groups, TOKENS, group] int16, or [tiles, groups, TOKENS, 2, group] int8
    for 4-bit weights, and each group has two sums (`quantize_group`), [tiles, groups, TOKENS, 2] float32; for weights
    of more than 8 bits activations stay float32.
    """

    form: Format
    unit_from: int
    """Number of tokens from which on the matrix unit multiplies; 0 if it never does."""

    @property
    def needed(self) -> bool:
        """Whether the activations have another form than float32."""
        return self.unit_from > 0 or self.form.bits <= 8

    @property
    def constants(self) -> tuple[int, int, int, int, int]:
        """Numbers that `round_row` needs at compile time."""
        form = self.form
        return form.group, LOW_BITS.get(form.bits, 0), int(form.bits == 4), parts(form), self.unit_from


def rounding_for(form: Format, groups: int, *, batch_invariant: bool) -> Rounding:
    """The rounding for a product with a weight of `form` in so many groups.

    With `batch_invariant`, the matrix unit multiplies any number of tokens or none, since its sums have other bits.
    """
    if not serves(form, groups):
        return Rounding(form, 0)
    return Rounding(form, 1 if batch_invariant or form.bits > 8 else UNIT_FROM)


def serves(form: Format, groups: int) -> bool:
    """Whether there is a matrix unit, and it can multiply with weights of `form` in so many groups."""
    suitable = form.bits <= 16 and form.group % 8 == 0 and DEPTH % form.group == 0 and groups * form.group % DEPTH == 0
    return suitable and LANES == 16 and matrix_unit()


def parts(form: Format) -> int:
    """Number of bfloat16 numbers whose sum is an activation: 1, with a relative error of 2^-8, or 2, with 2^-17.

    The error of the former is lost in that of weights of 4 and 8 bits.
    """
    return 1 if form.bits <= 8 else 2
