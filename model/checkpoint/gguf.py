"""Reads models from GGUF files (github.com/ggml-org/ggml, docs/gguf.md), versions 2 and 3, little-endian.

The header is parsed here and not by the gguf package, whose reader trusts the file, and makes several arrays for every
string of the vocabulary, which takes seconds.
"""

import os
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from model.checkpoint.checkpoint import NUMPY_DTYPES, DType, RawTensor
from model.checkpoint.errors import CheckpointError, label
from model.checkpoint.files import fill, opened
from model.checkpoint.gguf_blocks import DECODERS
from model.checkpoint.gguf_types import BLOCKS, TensorType, ValueType
from model.checkpoint.group_quantized import GroupQuantized
from model.checkpoint.sampling_defaults import SamplingDefaults, read_sampling_defaults
from model.checkpoint.tokenizer_data import GgufTokenizer

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

LARGEST_HEADER = 32 << 20
"""Limit of the bytes before the tensors' data; the largest vocabularies take a fraction of it."""
MOST_ENTRIES = 1 << 16
"""Limit of metadata entries, and of tensors."""
MOST_DIMENSIONS = 4
BLOCKS_AT_ONCE = 4096
"""Number of quantised blocks decoded at a time, few enough for the intermediate arrays to stay in a core's cache."""

PLAIN_TYPES: dict[TensorType, DType] = {
    TensorType.F32: "F32",
    TensorType.F16: "F16",
    TensorType.BF16: "BF16",
}

NUMBERS: dict[ValueType, np.dtype[Any]] = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}
UINT32 = struct.Struct("<I")
UINT64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class _Tensor:
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    """Bytes from the start of the tensors' data."""

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        block_elements, block_bytes = BLOCKS[self.type]
        return self.elements // block_elements * block_bytes


SAMPLING_PREFIX = "general.sampling."
SAMPLING_KEYS = {"temp": "temperature", "penalty_repeat": "repetition_penalty"}
"""The names in generation_config.json of GGUF's sampling keys, where they differ."""
IDLE_SAMPLING = {"xtc_probability": 0, "mirostat": 0, "penalty_last_n": -1}
"""Sampling keys that only GGUF has, each with the value at which it changes nothing.

The server's repetition penalty looks at all tokens, as penalty_last_n does at -1.
"""
SAMPLING_DETAILS = {"xtc_threshold": "xtc_probability", "mirostat_tau": "mirostat", "mirostat_eta": "mirostat"}
"""Sampling keys that refine another key, and that key, without which they change nothing."""


class GgufCheckpoint:
    """A GGUF file as a `Checkpoint`."""

    format: Literal["gguf"] = "gguf"
    missing: Mapping[str, str] = MappingProxyType({})

    def __init__(self, path: Path) -> None:
        self._path = path
        with opened(path) as file:
            header = _HeaderReader(file, path)
            tensor_count, entry_count = header.counts()
            self.config: Mapping[str, object] = header.metadata(entry_count)
            _refuse_split(self.config, path)
            self._tensors: Mapping[str, _Tensor] = header.tensors(tensor_count)
        alignment = _alignment(self.config, path)
        self._data_start = -(-header.position // alignment) * alignment
        _check_layout(self._tensors, alignment, header.file_size - self._data_start, path)

    @property
    def name(self) -> str:
        name = self.config.get("general.name")
        return name if isinstance(name, str) and name else self._path.stem

    @property
    def tokenizer(self) -> GgufTokenizer:
        return GgufTokenizer(self.config)

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        stored = {
            key.removeprefix(SAMPLING_PREFIX): value
            for key, value in self.config.items()
            if key.startswith(SAMPLING_PREFIX)
        }
        values = {
            SAMPLING_KEYS.get(key, key): value for key, value in stored.items() if not _asks_for_nothing(key, stored)
        }
        return read_sampling_defaults(values, str(self._path))

    def tensor_names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).shape

    def read(self, name: str) -> RawTensor:
        tensor = self._tensor(name)
        offset = self._data_start + tensor.offset
        with opened(self._path) as file:
            if tensor.type in DECODERS:
                return RawTensor(_dequantized(file, tensor, offset), "F32")
            dtype = PLAIN_TYPES[tensor.type]
            data = np.empty(tensor.shape, NUMPY_DTYPES[dtype])
            fill(data, file, offset)
            return RawTensor(data, dtype)

    def read_quantized(self, name: str) -> GroupQuantized | None:
        tensor = self._tensor(name)
        if tensor.type not in DECODERS or len(tensor.shape) != 2:
            return None
        with opened(self._path) as file:
            return _quantized(file, tensor, self._data_start + tensor.offset)

    def _tensor(self, name: str) -> _Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"{self._path}: has no tensor {label(name)}") from None


class _HeaderReader:
    """Reads a header from front to back. A count or length beyond the file's end is refused before it is allocated."""

    def __init__(self, file: BufferedReader, path: Path) -> None:
        self._file = file
        self._path = path
        self.position = 0
        self.file_size = os.fstat(file.fileno()).st_size
        self._end = min(self.file_size, LARGEST_HEADER)

    def counts(self) -> tuple[int, int]:
        """Numbers of tensors and of metadata entries, from the first 24 bytes of the file."""
        if self.file_size < len(MAGIC) or self._take(len(MAGIC)) != MAGIC:
            raise self._error("not a GGUF file")
        version = self._uint32()
        if version and version & 0xFFFF == 0:
            raise self._error("a big-endian GGUF file, which is not supported")
        if version not in VERSIONS:
            raise self._error(f"GGUF version {version} is not supported; versions 2 and 3 are")
        tensors, entries = self._uint64(), self._uint64()
        if max(tensors, entries) > MOST_ENTRIES:
            raise self._error(f"claims {tensors} tensors and {entries} metadata entries; the limit is {MOST_ENTRIES}")
        return tensors, entries

    def metadata(self, count: int) -> dict[str, object]:
        entries: dict[str, object] = {}
        for _ in range(count):
            key = self._string()
            if key in entries:
                raise self._error(f"the metadata key {label(key)} appears twice")
            entries[key] = self._value(self._uint32(), key)
        return entries

    def tensors(self, count: int) -> dict[str, _Tensor]:
        tensors: dict[str, _Tensor] = {}
        for _ in range(count):
            name = self._string()
            if name in tensors:
                raise self._error(f"the tensor {label(name)} appears twice")
            tensors[name] = self._tensor(name)
        return tensors

    def _tensor(self, name: str) -> _Tensor:
        rank = self._uint32()
        if not 1 <= rank <= MOST_DIMENSIONS:
            raise self._error(f"the tensor {label(name)} has {rank} dimensions; 1 to {MOST_DIMENSIONS} are possible")
        # GGUF lists dimensions in reverse: the one that is contiguous in memory comes first.
        shape = tuple(self._uint64() for _ in range(rank))[::-1]
        kind = self._tensor_type(self._uint32(), name)
        if 0 in shape:
            raise self._error(f"the tensor {label(name)} is empty: {label(shape)}")
        if shape[-1] % BLOCKS[kind][0]:
            raise self._error(f"rows of the tensor {label(name)} are not whole {kind.name} blocks: {label(shape)}")
        return _Tensor(shape, kind, self._uint64())

    def _tensor_type(self, number: int, name: str) -> TensorType:
        try:
            kind = TensorType(number)
        except ValueError:
            raise self._error(f"the tensor {label(name)} has the unknown type {number}") from None
        if kind not in PLAIN_TYPES and kind not in DECODERS:
            raise self._error(f"the tensor {label(name)} is of type {kind.name}, which is not supported")
        return kind

    def _value(self, kind: int, key: str) -> object:
        if kind == ValueType.STRING:
            return self._string()
        if kind == ValueType.ARRAY:
            item_kind, count = self._uint32(), self._uint64()
            if item_kind == ValueType.STRING:
                return self._strings(count)
            return self._numbers(item_kind, count, key)
        return self._numbers(kind, 1, key)[0]

    def _numbers(self, kind: int, count: int, key: str) -> list[Any]:
        if kind == ValueType.ARRAY:
            raise self._error(f"the metadata {label(key)} is an array of arrays, which is not supported")
        if kind not in NUMBERS:
            raise self._error(f"the metadata {label(key)} has the unknown type {kind}")
        dtype = NUMBERS[ValueType(kind)]
        values: list[Any] = np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()
        return values

    def _strings(self, count: int) -> list[str]:
        """Strings one behind the other. Vocabularies have 100,000 and more, so nothing else is called for each."""
        read, unpack, most, position = self._file.read, UINT64.unpack, self._end, self.position
        strings = []
        try:
            for _ in range(count):
                position += UINT64.size
                size = unpack(read(UINT64.size))[0] if position <= most else 0
                position += size
                if position > most:
                    break
                strings.append(read(size).decode())
        except UnicodeDecodeError:
            raise self._error(f"a string before byte {position} is not UTF-8") from None
        self._advance(position)
        return strings

    def _uint32(self) -> int:
        number: int = UINT32.unpack(self._take(4))[0]
        return number

    def _uint64(self) -> int:
        number: int = UINT64.unpack(self._take(8))[0]
        return number

    def _string(self) -> str:
        (string,) = self._strings(1)
        return string

    def _take(self, count: int) -> bytes:
        self._advance(self.position + count)
        return self._file.read(count)

    def _advance(self, position: int) -> None:
        """Note that the header goes on at a position, in bytes of the file, which nothing was read beyond."""
        if position > self.file_size:
            raise self._error(f"truncated or corrupt: byte {position} is wanted, and it has {self.file_size}")
        if position > LARGEST_HEADER:
            raise self._error(f"its header is larger than {LARGEST_HEADER >> 20} MiB")
        self.position = position

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {what}")


def _refuse_split(metadata: Mapping[str, object], path: Path) -> None:
    parts = metadata.get("split.count", 0)
    if parts not in (0, 1):
        raise CheckpointError(f"{path}: one of {label(parts)} parts of a split model; merge them into one file first")


def _asks_for_nothing(key: str, sampling: Mapping[str, object]) -> bool:
    """Whether a key under general.sampling changes no completion, given the other keys."""
    if key == "penalty_repeat":
        return sampling.get("penalty_last_n") == 0  # The penalty looks at none of the last tokens.
    if key == "penalty_last_n":
        return sampling[key] in (0, IDLE_SAMPLING[key]) or sampling.get("penalty_repeat", 1) == 1
    owner = SAMPLING_DETAILS.get(key, key)
    return owner in IDLE_SAMPLING and sampling.get(owner, IDLE_SAMPLING[owner]) == IDLE_SAMPLING[owner]


def _alignment(metadata: Mapping[str, object], path: Path) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: general.alignment is {label(alignment)}, not a power of two")
    return alignment


def _check_layout(tensors: Mapping[str, _Tensor], alignment: int, data_size: int, path: Path) -> None:
    """Raise CheckpointError unless every tensor is aligned and within the file, and no two overlap."""
    for name, tensor in tensors.items():
        if tensor.offset % alignment:
            raise CheckpointError(f"{path}: the tensor {label(name)} is not aligned to {alignment} bytes")
        if tensor.offset + tensor.nbytes > data_size:
            raise CheckpointError(f"{path}: truncated or corrupt: the tensor {label(name)} ends beyond the file")
    in_file = sorted(tensors.items(), key=lambda item: item[1].offset)
    for (name, tensor), (next_name, next_tensor) in pairwise(in_file):
        if tensor.offset + tensor.nbytes > next_tensor.offset:
            raise CheckpointError(f"{path}: the tensors {label(name)} and {label(next_name)} overlap")


def _dequantized(file: BufferedReader, tensor: _Tensor, offset: int) -> npt.NDArray[np.float32]:
    """The tensor in float32. It is decoded in pieces, so that codes and float32 numbers never both exist as a whole."""
    block_elements, _ = BLOCKS[tensor.type]
    values = np.empty((tensor.elements // block_elements, block_elements), np.float32)
    start = 0
    for blocks in _decoded(file, tensor, offset):
        end = start + len(blocks.codes)
        values[start:end] = blocks.dequantized()
        start = end
    return values.reshape(tensor.shape)


def _quantized(file: BufferedReader, tensor: _Tensor, offset: int) -> GroupQuantized:
    """The matrix [out, in] as codes and scales. Each row consists of whole blocks."""
    pieces = [*_decoded(file, tensor, offset)]
    rows = tensor.shape[0]
    offsets = [blocks.offsets for blocks in pieces if blocks.offsets is not None]
    return GroupQuantized(
        np.concatenate([blocks.codes for blocks in pieces]).reshape(rows, -1),
        np.concatenate([blocks.scales for blocks in pieces]).reshape(rows, -1),
        np.concatenate(offsets).reshape(rows, -1) if offsets else None,
        pieces[0].bits,
    )


def _decoded(file: BufferedReader, tensor: _Tensor, offset: int) -> Iterator[GroupQuantized]:
    """The tensor's blocks in pieces of up to `BLOCKS_AT_ONCE`, each piece [blocks, elements of a block]."""
    block_elements, block_bytes = BLOCKS[tensor.type]
    count = tensor.elements // block_elements
    for start in range(0, count, BLOCKS_AT_ONCE):
        blocks = np.empty((min(BLOCKS_AT_ONCE, count - start), block_bytes), np.uint8)
        fill(blocks, file, offset + start * block_bytes)
        with np.errstate(all="ignore"):  # A NaN or infinite scale gives such weights, without a warning.
            decoded = DECODERS[tensor.type](blocks)
        yield decoded
