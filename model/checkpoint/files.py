"""Reads from files that nobody vouches for: regular files only, a limit on every size, and one kind of error.

Data is read into arrays that the caller owns, not mapped: pages of a mapping would count as resident memory next
to the weights made from them, and a file that shrinks under a mapping ends the process.
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
"""Bytes of a JSON file that is parsed. Parsing takes some 20 times as much memory in the worst case."""


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """The regular file at `path`, open for reading. What the system refuses in the block is a CheckpointError."""
    try:
        if not path.is_file():
            # A pipe or a device would block or never end.
            raise CheckpointError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def present(path: Path) -> bool:
    """Whether there is anything at `path`. What the system refuses to say is a CheckpointError."""
    try:
        return path.exists()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole file, if it has at most `limit` bytes."""
    with opened(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CheckpointError(f"{path}: larger than {limit >> 20} MiB")
    return data


def read_json(path: Path) -> Mapping[str, object]:
    """The JSON object in a file."""
    return parse_json(read_bytes(path, LARGEST_JSON), str(path))


def read_text(path: Path) -> str:
    """The UTF-8 text in a file."""
    try:
        return read_bytes(path, LARGEST_JSON).decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not UTF-8 text") from None


def parse_json(data: bytes, source: str) -> Mapping[str, object]:
    """A JSON object in which no key appears twice. `source` begins the line of an error."""
    try:
        value = json.loads(data, object_pairs_hook=_unique)
    except RecursionError:
        raise CheckpointError(f"{source}: its JSON is nested too deep") from None
    except ValueError as error:  # JSON, UTF-8, an endless number, or a key twice.
        raise CheckpointError(f"{source}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: not a JSON object")
    return value


def fill(array: npt.NDArray[Any], file: BufferedReader, offset: int) -> None:
    """Read as many bytes as the contiguous `array` holds into it."""
    file.seek(offset)
    if file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
        raise CheckpointError(f"{file.name}: the file became shorter while it was read")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return found
