"""The state of attention for the rows of a tile, head by head, in scratch memory."""

from typing import Any

from numba import njit

from kernels.cpu.instructions import words
from kernels.cpu.target import REGISTER_ROWS


@njit(inline="always")
def padded_rows(rows: int) -> int:
    """A number of rows, in whole registers."""
    return (rows + REGISTER_ROWS - 1) // REGISTER_ROWS * REGISTER_ROWS


@njit(inline="always")
def state_bytes(padded: int, dim: int, width: int) -> int:
    """Bytes of the state of a head with so many rows, and of their bounds."""
    return 4 * padded * (6 + dim + width)


@njit(inline="always")
def state_of(states: int, head: int, padded: int, dim: int, width: int) -> Any:
    """Addresses of a head's peaks, masses, shrinks [padded], queries [padded, dim] and sums, float32."""
    at = states + head * state_bytes(padded, dim, width)
    return at, at + 4 * padded, at + 8 * padded, at + 12 * padded, at + 4 * padded * (3 + dim)


@njit(inline="always")
def bounds_of(states: int, head: int, padded: int, dim: int, width: int) -> int:
    """The address of what a head's rows see, as `soften` wants it: int32 [2, padded], and float32 [padded]."""
    return states + head * state_bytes(padded, dim, width) + 4 * padded * (3 + dim + width)


@njit(inline="always")
def advance(places: int, count: int, size: int) -> None:
    """Go on with so many addresses to the next head's, `size` bytes behind."""
    found = words(places, count)
    for j in range(count):
        found[j] += size
