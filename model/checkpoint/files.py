"""Reads untrusted files: regular files only, with a limit on every size. Every failure is a CheckpointError.

Data is read into the caller's arrays and not mapped. Pages of a mapping would count as resident memory beside the
weights made from them, and a mapped file that shrinks would end the process.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.checkpoint.errors import CheckpointError

LARGEST_JSON = 16 << 20
"""Largest JSON file that is parsed, in bytes. Parsing takes up to about 20 times as much memory."""


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open the regular file at `path` for reading. An OSError in the block becomes a CheckpointError."""
    try:
        if not path.is_file():
            # Reading a pipe or a device could block, or never end.
            raise CheckpointError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def present(path: Path) -> bool:
    """Whether anything exists at `path`. Raises CheckpointError if the system cannot tell."""
    try:
        return path.exists()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole file. Raises CheckpointError if it has more than `limit` bytes."""
    with opened(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CheckpointError(f"{path}: larger than {limit >> 20} MiB")
    return data


def read_json(path: Path) -> Mapping[str, object]:
    """The JSON object in a file. Raises CheckpointError."""
    return parse_json(read_bytes(path, LARGEST_JSON), str(path))


def read_text(path: Path) -> str:
    """The UTF-8 text in a file. Raises CheckpointError."""
    try:
        return read_bytes(path, LARGEST_JSON).decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not UTF-8 text") from None


def parse_json(data: bytes, source: str) -> Mapping[str, object]:
    """The JSON object in `data`. Raises CheckpointError if there is none, or if a key appears twice in an object.

    The message begins with `source`.
    """
    try:
        value = json.loads(data, object_pairs_hook=_unique)
    except RecursionError:
        raise CheckpointError(f"{source}: its JSON is nested too deep") from None
    except ValueError as error:  # Invalid JSON or UTF-8, a number with too many digits, or a key that appears twice.
        raise CheckpointError(f"{source}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: not a JSON object")
    return value


def fill(array: npt.NDArray[Any], file: BufferedReader, offset: int) -> None:
    """Fill the contiguous `array` with bytes from `offset` of the file on. Raises CheckpointError if it ends early."""
    file.seek(offset)
    if file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
        raise CheckpointError(f"{file.name}: the file became shorter while it was read")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return found
