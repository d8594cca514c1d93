"""Quantised weights in the order in which the GPU kernels read them. Knows nothing of matrix products."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import QuantizedWeight
from kernels.gpu.launch import Launcher

DEQUANTIZED_ROWS = 32
"""Rows that one program of `_dequantize` writes."""


@dataclass(frozen=True, slots=True)
class PackedWeight(QuantizedWeight):
    """A quantised weight in 32-bit words, each ordered so that one shift and one mask extract two neighbouring inputs.

    A tile is `fields * width` neighbouring inputs of a row and takes width / 2 words. Each half of a word has `fields`
    fields of `bits` bits, lowest first. Field f of word j holds input f * width + 2j of the tile in the low half and
    input f * width + 2j + 1 in the high half. Field f of all words of a tile is thus a run of `width` inputs.

    `codes` are int32 [out, words]. `scales` and `offsets` are transposed, [groups, out]. All are padded with zeros to
    whole tiles.
    """

    inputs: int
    """The number of inputs of a row, without padding."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.inputs

    @property
    def fields(self) -> int:
        """Codes in half a word."""
        return 16 // self.bits

    @property
    def width(self) -> int:
        """Inputs in a run. A run lies within one group, and 64 inputs of 16 bits fill a line of shared memory."""
        return min(self.group_size, 64)

    @property
    def tiles(self) -> int:
        """Tiles in a row."""
        return -(-self.inputs // (self.fields * self.width))


def rearrange(weight: QuantizedWeight) -> PackedWeight:
    """`weight` as a `PackedWeight`; the original is not changed."""
    outputs, inputs = weight.shape
    packed = PackedWeight(
        weight.codes, weight.scales, weight.offsets, weight.zero, weight.bits, weight.group_size, inputs
    )
    padded = packed.tiles * packed.fields * packed.width
    groups = triton.cdiv(padded, weight.group_size)
    codes = weight.codes
    if weight.bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1)
    runs = F.pad(codes, (0, padded - inputs)).view(outputs, packed.tiles, packed.fields, packed.width // 2, 2)
    words = torch.zeros(outputs, packed.tiles, packed.width // 2, dtype=torch.int32, device=codes.device)
    for field in range(packed.fields):
        for half in range(2):
            words |= runs[:, :, field, :, half].int() << (16 * half + weight.bits * field)
    return PackedWeight(
        words.flatten(1),
        _transposed(weight.scales, groups),
        None if weight.offsets is None else _transposed(weight.offsets, groups),
        weight.zero,
        weight.bits,
        weight.group_size,
        inputs,
    )


def _transposed(numbers: Tensor, groups: int) -> Tensor:
    """Transpose `numbers` [out, n] and pad with zeros to [groups, out]."""
    return F.pad(numbers, (0, groups - numbers.shape[1])).T.contiguous()


def dequantize(launch: Launcher, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """`scale * (code - zero) + offset`: the weight [out, in] in `dtype`."""
    outputs, inputs = weight.shape
    numbers = torch.empty(outputs, inputs, dtype=dtype, device=weight.codes.device)
    launch(
        _dequantize,
        (triton.cdiv(outputs, DEQUANTIZED_ROWS), weight.tiles),
        weight.codes,
        weight.scales,
        weight.offsets,
        numbers,
        outputs,
        inputs,
        BITS=weight.bits,
        ZERO=weight.zero,
        GROUP=weight.group_size,
        WIDTH=weight.width,
        OUTPUTS=DEQUANTIZED_ROWS,
        num_warps=4,
        num_stages=1,
    )
    return numbers


@triton.constexpr_function
def code_unit(dtype):
    """The power of two by which results of `integers` must be multiplied to give code - zero."""
    return 2.0**9 if dtype == tl.float16 else 2.0**6 if dtype == tl.bfloat16 else 2.0**22


@triton.jit
def integers(
    words,
    FIELD: tl.constexpr,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    dtype: tl.constexpr,
    LEAN: tl.constexpr = False,
):
    """(code - zero) / code_unit(dtype), exact, of one field of the words: [ROWS, WORDS] -> [ROWS, WIDTH] in `dtype`.

    The bits of a small integer, reinterpreted as a floating-point number, have the value of that integer times the
    smallest positive number of the dtype. This holds for subnormals and for the first normal exponent. One
    multiplication moves the value into the normal range. It handles two 16-bit numbers at once; a conversion
    instruction handles one, at a fraction of the rate.

    With LEAN there are fewer instructions. All 8-bit integers are small in the sense above, so that a 4-bit code in the
    upper half of a byte stays there and counts 16 times as much: two fields share one shift. And the upper 8-bit code
    is subtracted from 256, since the compiler would take a mere shift by a byte apart, for each half of a word.
    """
    UP: tl.constexpr = BITS * FIELD % 8 if LEAN else 0
    BACKWARDS: tl.constexpr = LEAN and BITS == 8 and FIELD == 1
    pairs = (words >> (BITS * FIELD - UP)) & (((2**BITS - 1) << UP) * 0x10001)  # [ROWS, WORDS]
    if BACKWARDS:
        pairs = 0x01000100 - pairs
    if dtype == tl.float32:
        low, high = pairs & 0xFFFF, pairs >> 16  # [ROWS, WORDS] each
    else:
        low, high = pairs.to(tl.uint16), (pairs >> 16).to(tl.uint16)  # [ROWS, WORDS] each
    # [ROWS, WORDS, 2]
    tiny = tl.join(low.to(dtype, bitcast=True), high.to(dtype, bitcast=True))
    lift: tl.constexpr = (2.0**15 if dtype == tl.float16 else 2.0**127) / 2**UP
    lifted = tiny.reshape(words.shape[0], 2 * words.shape[1]) * (-lift if BACKWARDS else lift)  # [ROWS, WIDTH]
    return lifted - (ZERO - 256 if BACKWARDS else ZERO) / code_unit(dtype)


@triton.jit
def _dequantize(
    codes,
    scales,
    offsets,
    numbers,
    outputs,
    inputs,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """numbers[n, k] = scale * (code - zero) + offset, computed in float32, then rounded to the dtype of `numbers`.

    The grid is (blocks of OUTPUTS rows, tiles).
    """
    FIELDS: tl.constexpr = 16 // BITS
    WORDS: tl.constexpr = WIDTH // 2
    tile = tl.program_id(1)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)  # [OUTPUTS]
    there = n < outputs  # [OUTPUTS]
    row = n.to(tl.int64)[:, None]  # [OUTPUTS, 1]
    word = (tile * WORDS + tl.arange(0, WORDS))[None, :]  # [1, WORDS]
    words = tl.load(codes + row * (tl.num_programs(1) * WORDS) + word, mask=there[:, None], other=0)  # [OUTPUTS, WORDS]
    for field in tl.static_range(FIELDS):
        start = (tile * FIELDS + field) * WIDTH
        group = start // GROUP * outputs + n  # [OUTPUTS]
        scale = tl.load(scales + group, mask=there, other=0.0).to(tl.float32) * code_unit(tl.float32)  # [OUTPUTS]
        values = integers(words, field, BITS, ZERO, tl.float32) * scale[:, None]  # [OUTPUTS, WIDTH]
        if offsets is not None:
            values += tl.load(offsets + group, mask=there, other=0.0).to(tl.float32)[:, None]
        k = (start + tl.arange(0, WIDTH))[None, :]  # [1, WIDTH]
        tl.store(numbers + row * inputs + k, values.to(numbers.dtype.element_ty), mask=there[:, None] & (k < inputs))
