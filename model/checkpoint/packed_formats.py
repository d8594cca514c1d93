"""Hugging Face's group-quantised formats: how each packs a layer's weight into several tensors of 32-bit words.

It knows nothing of files and configurations. Which layers are packed is seen from the tensors that there are: a layer
that was left out of the quantisation has a plain weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from model.checkpoint.errors import CheckpointError, label
from model.checkpoint.group_quantized import GroupQuantized

Words = npt.NDArray[np.uint32]
Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Shape = tuple[int, ...]
Bits = Literal[4, 8]

WORD_BITS = 32
AWQ_BITS: Bits = 4
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""Where in a word the output 8 i + j is, in fields from the lowest bits on, for j from 0."""


class PackedFormat(Protocol):
    """One format with the numbers that config.json gives. Tensors are called by what follows the layer's name."""

    @property
    def marker(self) -> str:
        """The tensor that a packed layer has and no other: the codes."""
        ...

    @property
    def words(self) -> tuple[str, ...]:
        """All tensors of 32-bit words, the marker first."""
        ...

    @property
    def scales(self) -> str:
        """The tensor of scales."""
        ...

    @property
    def optional(self) -> tuple[str, ...]:
        """Tensors that need not be there; those that are no `words` are not read."""
        ...

    @property
    def group_size(self) -> int | None:
        """None: a row is one group."""
        ...

    def shapes(self, marker: Shape) -> Mapping[str, Shape]:
        """Of "weight" [out, in] and of every tensor that is stored for it, from the two sizes of the marker."""
        ...

    def unpack(self, words: Mapping[str, Words], scales: Floats) -> GroupQuantized:
        """The weight, from tensors of the right shapes. Raises PackingError."""
        ...


class PackingError(Exception):
    """What is not supported about a packed weight, for the end of a line that names it."""


@dataclass(frozen=True, slots=True)
class Gptq:
    """AutoGPTQ's format (github.com/AutoGPTQ/AutoGPTQ), and GPTQModel's second version of it.

    qweight [in / n, out] and qzeros [groups, out / n] hold n integers a word, scales is [groups, out].
    w = scale * (code - zero).
    """

    bits: Bits
    group_size: int | None
    stored_zero: int
    """What is stored for a zero of 0: the first version stores all less one."""

    marker: ClassVar[str] = "qweight"
    words: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "g_idx")
    scales: ClassVar[str] = "scales"
    optional: ClassVar[tuple[str, ...]] = ("g_idx",)

    def shapes(self, marker: Shape) -> Mapping[str, Shape]:
        rows, out = marker
        columns = rows * (WORD_BITS // self.bits)
        groups = _groups(columns, self.group_size)
        zeros = (groups, _words(out, self.bits))
        return {
            "weight": (out, columns),
            "qweight": marker,
            "qzeros": zeros,
            "scales": (groups, out),
            "g_idx": (columns,),
        }

    def unpack(self, words: Mapping[str, Words], scales: Floats) -> GroupQuantized:
        codes = _fields(words["qweight"], self.bits, axis=0).T
        columns = codes.shape[1]
        in_order = np.arange(columns) // (self.group_size or columns)
        if not np.array_equal(words.get("g_idx", in_order), in_order):
            raise PackingError("has columns in the order of activations (desc_act), which is not supported")
        zeros = _fields(words["qzeros"], self.bits, axis=1)[:, : len(codes)].astype(np.float32) - self.stored_zero
        return _affine(codes, scales.T, zeros.T, self.bits)


@dataclass(frozen=True, slots=True)
class Awq:
    """AutoAWQ's format (github.com/casper-hansen/AutoAWQ), version GEMM, always of 4 bits.

    qweight [in, out / 8] and qzeros [groups, out / 8] hold eight outputs a word, in the order of `AWQ_ORDER`; scales is
    [groups, out]. w = scale * (code - zero).
    """

    group_size: int | None

    marker: ClassVar[str] = "qweight"
    words: ClassVar[tuple[str, ...]] = ("qweight", "qzeros")
    scales: ClassVar[str] = "scales"
    optional: ClassVar[tuple[str, ...]] = ()

    def shapes(self, marker: Shape) -> Mapping[str, Shape]:
        columns, words = marker
        out, groups = words * (WORD_BITS // AWQ_BITS), _groups(columns, self.group_size)
        return {"weight": (out, columns), "qweight": marker, "qzeros": (groups, words), "scales": (groups, out)}

    def unpack(self, words: Mapping[str, Words], scales: Floats) -> GroupQuantized:
        codes, zeros = (self._outputs(words[name]) for name in ("qweight", "qzeros"))
        return _affine(codes.T, scales.T, zeros.T.astype(np.float32), AWQ_BITS)

    @staticmethod
    def _outputs(words: Words) -> Codes:
        fields = _fields(words, AWQ_BITS, axis=1)
        return fields.reshape(len(words), -1, len(AWQ_ORDER))[:, :, AWQ_ORDER].reshape(fields.shape)


@dataclass(frozen=True, slots=True)
class PackQuantized:
    """The format pack-quantized of compressed-tensors (github.com/vllm-project/compressed-tensors).

    weight_packed [out, in / n] and weight_zero_point [out / n, groups] hold n integers a word, signed ones with half
    their range added; weight_scale is [out, groups]. w = scale * (code - zero).
    """

    bits: Bits
    group_size: int | None
    symmetric: bool

    marker: ClassVar[str] = "weight_packed"
    scales: ClassVar[str] = "weight_scale"
    optional: ClassVar[tuple[str, ...]] = ("weight_shape",)

    @property
    def words(self) -> tuple[str, ...]:
        return ("weight_packed",) if self.symmetric else ("weight_packed", "weight_zero_point")

    def shapes(self, marker: Shape) -> Mapping[str, Shape]:
        out, words = marker
        columns = words * (WORD_BITS // self.bits)
        groups = _groups(columns, self.group_size)
        return {
            "weight": (out, columns),
            "weight_packed": marker,
            "weight_scale": (out, groups),
            "weight_zero_point": (_words(out, self.bits), groups),
            "weight_shape": (2,),
        }

    def unpack(self, words: Mapping[str, Words], scales: Floats) -> GroupQuantized:
        codes = _fields(words["weight_packed"], self.bits, axis=1)
        if self.symmetric:
            return GroupQuantized(codes, scales, None, self.bits)
        zeros = _fields(words["weight_zero_point"], self.bits, axis=0)[: len(codes)]
        return _affine(codes, scales, zeros.astype(np.float32), self.bits)


def _groups(columns: int, group_size: int | None) -> int:
    return 1 if group_size is None else columns // group_size


def _words(count: int, bits: Bits) -> int:
    """How many words hold `count` integers."""
    return -(-count * bits // WORD_BITS)


def _fields(words: Words, bits: Bits, axis: Literal[0, 1]) -> Codes:
    """The integers of every word, from its lowest bits on, one after another along `axis`."""
    mask = np.uint32((1 << bits) - 1)
    fields = [(words >> np.uint32(shift) & mask).astype(np.uint8) for shift in range(0, WORD_BITS, bits)]
    rows, columns = words.shape
    shape = (rows * len(fields), columns) if axis == 0 else (rows, columns * len(fields))
    return np.stack(fields, axis + 1).reshape(shape)


def _affine(codes: Codes, scales: Floats, zeros: Floats, bits: Bits) -> GroupQuantized:
    """What means scale * (code - zero), with a zero [out, groups] for every group."""
    codes, scales = np.ascontiguousarray(codes), np.ascontiguousarray(scales)
    if (zeros == 1 << (bits - 1)).all():
        return GroupQuantized(codes, scales, None, bits)
    with np.errstate(all="ignore"):
        return GroupQuantized(codes, scales, -scales * zeros, bits)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """Where one layer's weight is."""

    shape: tuple[int, ...]
    """[out, in]."""
    parts: Mapping[str, str]
    """Tensors by what the format calls them."""


def find_packed(shapes: Mapping[str, Shape], packing: PackedFormat, source: str) -> dict[str, PackedWeight]:
    """Every packed weight among the tensors of `shapes`, under the name that it would have unpacked.

    Raises CheckpointError, with `source` at the line's beginning, for a layer whose tensors do not fit each other.
    """
    marker = f".{packing.marker}"
    layers = [name.removesuffix(marker) for name in shapes if name.endswith(marker)]
    return {f"{layer}.weight": _packed_weight(layer, shapes, packing, source) for layer in layers}


def _packed_weight(layer: str, shapes: Mapping[str, Shape], packing: PackedFormat, source: str) -> PackedWeight:
    marker = f"{layer}.{packing.marker}"
    if len(shapes[marker]) != 2 or f"{layer}.weight" in shapes:
        raise CheckpointError(f"{source}: the tensor {label(marker)} is no matrix, or stands beside the same unpacked")
    expected = packing.shapes(shapes[marker])
    parts: dict[str, str] = {}
    for part in (*packing.words, packing.scales, *packing.optional):
        name = f"{layer}.{part}"
        if name not in shapes and part in packing.optional:
            continue
        if shapes.get(name) != expected[part]:
            raise CheckpointError(
                f"{source}: the tensor {label(name)} has the shape {shapes.get(name)}, and {label(marker)} asks for "
                f"{expected[part]} in groups of {packing.group_size}"
            )
        parts[part] = name
    out, columns = expected["weight"]
    if columns % (packing.group_size or columns):
        raise CheckpointError(f"{source}: rows of {label(marker)} are not whole groups of {packing.group_size}")
    return PackedWeight((out, columns), parts)
