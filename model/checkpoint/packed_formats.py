"""Hugging Face's group-quantised formats, which pack a layer's weight into several tensors of 32-bit words.

A layer is packed if the file has its packed tensors; a layer that was left unquantised has a plain weight. Files and
configurations are not known here.
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
"""Field of a word that holds output 8 i + j, for j from 0 to 7; fields are counted from the lowest bits."""


class PackedFormat(Protocol):
    """A format with its parameters from config.json. Tensors go by the last part of their name, such as "qweight"."""

    @property
    def marker(self) -> str:
        """The tensor of codes, which every packed layer has, and no other layer."""
        ...

    @property
    def words(self) -> tuple[str, ...]:
        """The tensors of 32-bit words, the marker first."""
        ...

    @property
    def scales(self) -> str:
        """The tensor of scales."""
        ...

    @property
    def optional(self) -> tuple[str, ...]:
        """The tensors that may be absent; they are read only if they are also among `words`."""
        ...

    @property
    def group_size(self) -> int | None:
        """Number of inputs in a group; None: each row is one group."""
        ...

    def shapes(self, marker: Shape) -> Mapping[str, Shape]:
        """Shapes of "weight", [out, in], and of every tensor that is stored for it, from the marker's shape."""
        ...

    def unpack(self, words: Mapping[str, Words], scales: Floats) -> GroupQuantized:
        """The weight, from tensors whose shapes have been checked. Raises PackingError."""
        ...


class PackingError(Exception):
    """A packed weight has a property that is not supported. The message continues a line that names the weight."""


@dataclass(frozen=True, slots=True)
class Gptq:
    """AutoGPTQ's format (github.com/AutoGPTQ/AutoGPTQ), and GPTQModel's second version of it.

    w = scale * (code - zero). qweight [in / n, out] and qzeros [groups, out / n] hold n integers in each word; scales
    is [groups, out].
    """

    bits: Bits
    group_size: int | None
    stored_zero: int
    """The stored integer of a zero of 0: -1 in the first version, which stores every zero less 1; else 0."""

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
    """AutoAWQ's format (github.com/casper-hansen/AutoAWQ), version GEMM, always with 4 bits.

    w = scale * (code - zero). qweight [in, out / 8] and qzeros [groups, out / 8] hold eight outputs in each word, in
    the order of `AWQ_ORDER`; scales is [groups, out].
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

    w = scale * (code - zero). weight_packed [out, in / n] and weight_zero_point [out / n, groups] hold n integers in
    each word; signed integers are stored with half their range added. weight_scale is [out, groups].
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
    """Number of words that hold `count` integers."""
    return -(-count * bits // WORD_BITS)


def _fields(words: Words, bits: Bits, axis: Literal[0, 1]) -> Codes:
    """Unpack the integers of every word, from its lowest bits on, and put them one after another along `axis`."""
    mask = np.uint32((1 << bits) - 1)
    fields = [(words >> np.uint32(shift) & mask).astype(np.uint8) for shift in range(0, WORD_BITS, bits)]
    rows, columns = words.shape
    shape = (rows * len(fields), columns) if axis == 0 else (rows, columns * len(fields))
    return np.stack(fields, axis + 1).reshape(shape)


def _affine(codes: Codes, scales: Floats, zeros: Floats, bits: Bits) -> GroupQuantized:
    """The weight scale * (code - zero), from codes [out, in], scales [out, groups] and zeros [out, groups]."""
    codes, scales = np.ascontiguousarray(codes), np.ascontiguousarray(scales)
    if (zeros == 1 << (bits - 1)).all():
        return GroupQuantized(codes, scales, None, bits)
    with np.errstate(all="ignore"):
        return GroupQuantized(codes, scales, -scales * zeros, bits)


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """The shape of one packed weight, and the tensors that hold it."""

    shape: tuple[int, ...]
    """(out, in), unpacked."""
    parts: Mapping[str, str]
    """Full names of the tensors, by the format's own names for them."""


def find_packed(shapes: Mapping[str, Shape], packing: PackedFormat, source: str) -> dict[str, PackedTensor]:
    """Every packed weight among the tensors of `shapes`, by the name that it would have unpacked.

    Raises CheckpointError, with a message that begins with `source`, if the tensors of a layer do not fit together.
    """
    marker = f".{packing.marker}"
    layers = [name.removesuffix(marker) for name in shapes if name.endswith(marker)]
    return {f"{layer}.weight": _packed_tensor(layer, shapes, packing, source) for layer in layers}


def _packed_tensor(layer: str, shapes: Mapping[str, Shape], packing: PackedFormat, source: str) -> PackedTensor:
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
    return PackedTensor((out, columns), parts)
