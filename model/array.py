"""Arrays as a step reports them. This module imports the standard library alone."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Array:
    """Numbers as little-endian float32 in C order."""

    shape: Sequence[int]
    data: bytes
