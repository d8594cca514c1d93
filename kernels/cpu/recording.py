"""Recordings: what a backend was asked for, as one program, and the places where a replay of it may end."""

from collections.abc import Sequence
from dataclasses import dataclass

from kernels.cpu.operation import Operation
from kernels.cpu.program import Program

Call = tuple[Operation, Sequence[int]]
"""One operation of a program, and its arguments."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded program, and how many of its operations come before each of its further parts."""

    program: Program
    whole: int
    """Number of operations that work on all tokens, before those on chosen rows alone."""
    undrawn: int
    """Number of operations before the draws."""


class Recorder:
    """The calls recorded so far."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._whole: int | None = None
        self._undrawn: int | None = None

    def narrow(self) -> None:
        """Note that the calls from here on are those on chosen rows alone."""
        self._whole = len(self.calls)

    def draw(self) -> None:
        """Note that the calls from here on draw tokens."""
        self._undrawn = len(self.calls)

    def finish(self) -> Recording:
        """The recording of all calls. Parts that it does not have are empty ones at its end."""
        undrawn = len(self.calls) if self._undrawn is None else self._undrawn
        return Recording(Program(self.calls), undrawn if self._whole is None else self._whole, undrawn)
