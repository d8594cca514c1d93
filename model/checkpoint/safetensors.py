"""Reads one file of tensors in the safetensors format (github.com/huggingface/safetensors, README).

The library's own reader cannot read bfloat16 without torch, so the header, a JSON object, is read and checked here.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.checkpoint.checkpoint import NUMPY_DTYPES, DType, RawTensor
from model.checkpoint.errors import CheckpointError, label
from model.checkpoint.files import LARGEST_JSON, fill, opened, parse_json

LENGTH_BYTES = 8
MOST_DIMENSIONS = 8
LARGEST_DIMENSION = 1 << 48
"""Limit of a dimension, above that of any file; far larger integers would overflow in NumPy."""

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes of a number in each dtype that a file may have. Some cannot be read, but occur in tensors that are not used."""


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """The tensors of one file, by name. Opening it checks its structure, and raises CheckpointError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with opened(path) as file:
            header, self._data_start = _header(file, path)
            data_size = os.fstat(file.fileno()).st_size - self._data_start
        self._entries = {name: _entry(name, value, path) for name, value in header.items() if name != "__metadata__"}
        _check_layout(self._entries, data_size, path)
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def read(self, name: str) -> RawTensor:
        """The numbers of a tensor in `shapes`. Raises CheckpointError if its dtype is not float."""
        dtype = _readable(self._entries[name].dtype, name, self._path)
        return RawTensor(self._read(name, NUMPY_DTYPES[dtype]), dtype)

    def read_words(self, name: str) -> npt.NDArray[np.uint32]:
        """The 32-bit words of a tensor in `shapes`. Raises CheckpointError if its dtype is another."""
        dtype = self._entries[name].dtype
        if dtype not in ("I32", "U32"):
            raise CheckpointError(f"{self._path}: the tensor {label(name)} is of type {dtype}, not of 32-bit integers")
        return self._read(name, np.uint32)

    def read_e4m3(self, name: str) -> npt.NDArray[np.uint8]:
        """The bits of a tensor in `shapes` of e4m3 numbers. Raises CheckpointError if its dtype is another."""
        dtype = self._entries[name].dtype
        if dtype != "F8_E4M3":
            raise CheckpointError(f"{self._path}: the tensor {label(name)} is of type {dtype}, not F8_E4M3")
        return self._read(name, np.uint8)

    def _read(self, name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        entry = self._entries[name]
        data = np.empty(entry.shape, dtype)
        with opened(self._path) as file:
            fill(data, file, self._data_start + entry.begin)
        return data


def _header(file: BufferedReader, path: Path) -> tuple[Mapping[str, object], int]:
    """The header, and the byte at which the tensors' data begins."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if length > LARGEST_JSON:
        raise CheckpointError(f"{path}: not a safetensors file, or its header is larger than {LARGEST_JSON >> 20} MiB")
    data = file.read(length)
    if not data or len(data) < length:
        raise CheckpointError(f"{path}: truncated: its header is not complete")
    return parse_json(data, f"{path}: its header"), LENGTH_BYTES + length


def _entry(name: str, value: object, path: Path) -> _Entry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise CheckpointError(f"{path}: the header's entry for the tensor {label(name)} is malformed")
    if dtype not in ITEM_BYTES:
        raise CheckpointError(f"{path}: the tensor {label(name)} has the unknown type {label(dtype)}")
    if len(shape) > MOST_DIMENSIONS or not all(type(n) is int and 0 < n < LARGEST_DIMENSION for n in shape):
        raise CheckpointError(f"{path}: the tensor {label(name)} has the impossible shape {label(shape)}")
    if end - begin != prod(shape) * ITEM_BYTES[dtype]:
        raise CheckpointError(f"{path}: the tensor {label(name)} has more or fewer bytes than its shape {label(shape)}")
    return _Entry(dtype, tuple(shape), begin, end)


def _check_layout(entries: Mapping[str, _Entry], data_size: int, path: Path) -> None:
    """Raise CheckpointError unless every tensor begins where the one before it ends, as the format requires."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != end:
            raise CheckpointError(f"{path}: there is an overlap or a gap before the tensor {label(name)}")
        end = entry.end
    if end != data_size:
        raise CheckpointError(f"{path}: truncated or corrupt: it has {data_size} bytes of data, its header says {end}")


def _readable(dtype: str, name: str, path: Path) -> DType:
    for readable in NUMPY_DTYPES:
        if dtype == readable:
            return readable
    raise CheckpointError(f"{path}: the tensor {label(name)} is of type {dtype}, which is not supported")
