"""Decodes GGUF's quantised blocks, which are structs of ggml's ggml-common.h, into codes, scales and offsets.

Nothing is rounded: the product of a block's float16 scale and a group's small integer is exact in float32.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from model.checkpoint.gguf_types import TensorType
from model.checkpoint.group_quantized import GroupQuantized

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

BlockDecoder = Callable[[Bytes], GroupQuantized]
"""Decodes blocks [count, bytes of a block] into a weight [count, elements of a block], one row for each block."""


def _q4_0(blocks: Bytes) -> GroupQuantized:
    scale, codes = _split(blocks, 2, 16)
    return GroupQuantized(_fields(codes, 4, 16), _halves(scale), None, 4)


def _q4_1(blocks: Bytes) -> GroupQuantized:
    scale, offset, codes = _split(blocks, 2, 2, 16)
    return GroupQuantized(_fields(codes, 4, 16), _halves(scale), _halves(offset), 4)


def _q5_0(blocks: Bytes) -> GroupQuantized:
    scale, high, low = _split(blocks, 2, 4, 16)
    return GroupQuantized(_centred(_joined(_fields(low, 4, 16), _fields(high, 1, 1), 4), 16), _halves(scale), None, 8)


def _q5_1(blocks: Bytes) -> GroupQuantized:
    scale, offset, high, low = _split(blocks, 2, 2, 4, 16)
    return GroupQuantized(_joined(_fields(low, 4, 16), _fields(high, 1, 1), 4), _halves(scale), _halves(offset), 8)


def _q8_0(blocks: Bytes) -> GroupQuantized:
    scale, signed = _split(blocks, 2, 32)
    return GroupQuantized(_centred(signed, 0), _halves(scale), None, 8)


def _q2_k(blocks: Bytes) -> GroupQuantized:
    both, codes, scale, offset = _split(blocks, 16, 64, 2, 2)
    return GroupQuantized(_fields(codes, 2, 32), _halves(scale) * (both & 15), -_halves(offset) * (both >> 4), 4)


def _q3_k(blocks: Bytes) -> GroupQuantized:
    high, low, group_scales, scale = _split(blocks, 32, 64, 12, 2)
    group_low, group_high = _split(group_scales, 8, 4)
    signed = _joined(_fields(group_low, 4, 8), _fields(group_high, 2, 4), 4).astype(np.float32) - 32
    codes = _joined(_fields(low, 2, 32), _fields(high, 1, 32), 2)
    # The code of 0 is 4 in the block, and 8 in centred 4-bit codes.
    return GroupQuantized(codes + np.uint8(4), _halves(scale) * signed, None, 4)


def _q4_k(blocks: Bytes) -> GroupQuantized:
    scale, offset, packed, codes = _split(blocks, 2, 2, 12, 128)
    scales, offsets = _k_scales(scale, offset, packed)
    return GroupQuantized(_fields(codes, 4, 32), scales, offsets, 4)


def _q5_k(blocks: Bytes) -> GroupQuantized:
    scale, offset, packed, high, low = _split(blocks, 2, 2, 12, 32, 128)
    scales, offsets = _k_scales(scale, offset, packed)
    return GroupQuantized(_joined(_fields(low, 4, 32), _fields(high, 1, 32), 4), scales, offsets, 8)


def _q6_k(blocks: Bytes) -> GroupQuantized:
    low, high, group_scales, scale = _split(blocks, 128, 64, 16, 2)
    codes = _joined(_fields(low, 4, 64), _fields(high, 2, 32), 4)
    return GroupQuantized(_centred(codes, 32), _halves(scale) * group_scales.view(np.int8), None, 8)


DECODERS: Mapping[TensorType, BlockDecoder] = {
    TensorType.Q4_0: _q4_0,
    TensorType.Q4_1: _q4_1,
    TensorType.Q5_0: _q5_0,
    TensorType.Q5_1: _q5_1,
    TensorType.Q8_0: _q8_0,
    TensorType.Q2_K: _q2_k,
    TensorType.Q3_K: _q3_k,
    TensorType.Q4_K: _q4_k,
    TensorType.Q5_K: _q5_k,
    TensorType.Q6_K: _q6_k,
}


def _split(blocks: Bytes, *sizes: int) -> list[Bytes]:
    """The fields [count, size] of structs [count, bytes], from the fields' sizes in bytes."""
    return [np.ascontiguousarray(field) for field in np.split(blocks, np.cumsum(sizes)[:-1], axis=1)]


def _fields(packed: Bytes, bits: int, run: int) -> Bytes:
    """Unpack integers of `bits` bits. Every `run` bytes give all their lowest integers first, then the next ones."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields: Bytes = packed.reshape(len(packed), -1, 1, run) >> shifts & np.uint8((1 << bits) - 1)
    return fields.reshape(len(packed), -1)


def _joined(low: Bytes, high: Bytes, low_bits: int) -> Bytes:
    """Integers made of their lowest `low_bits` bits `low` and the bits above, `high`."""
    return low | high << np.uint8(low_bits)


def _centred(codes: Bytes, zero: int) -> Bytes:
    """Shift codes whose code for 0 is `zero` to 8-bit codes centred on 128; signed codes wrap around correctly."""
    return codes + np.uint8(128 - zero)


def _halves(data: Bytes) -> Floats:
    """float32 [count, n] from the bytes [count, 2 n] of float16 numbers."""
    return data.view(np.float16).astype(np.float32)


def _k_scales(scale: Bytes, offset: Bytes, packed: Bytes) -> tuple[Floats, Floats]:
    """Scales and offsets, each [count, 8], of the eight groups in blocks of Q4_K and Q5_K.

    Their 6-bit integers are packed in 12 bytes. The integers of groups 0 to 3 are the low six bits of bytes 0 to 3
    (scales) and 4 to 7 (offsets). The integers of groups 4 to 7 have their low four bits in bytes 8 to 11, and their
    high two bits in the high bits of bytes 0 to 7.
    """
    first, second, low = _split(packed, 4, 4, 4)
    low_scales, low_offsets = _split(_fields(low, 4, 4), 4, 4)
    scales = np.hstack([first & np.uint8(63), _joined(low_scales, first >> np.uint8(6), 4)])
    offsets = np.hstack([second & np.uint8(63), _joined(low_offsets, second >> np.uint8(6), 4)])
    return _halves(scale) * scales, -_halves(offset) * offsets
