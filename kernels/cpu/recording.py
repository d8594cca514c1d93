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
    greedy: Program | None
    """The program of a pass in which all draws are greedy, if it is another one."""


class Recorder:
    """The calls recorded so far."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._whole: int | None = None
        self._undrawn: int | None = None
        self._greedy: Program | None = None

    def narrow(self) -> None:
        """Note that the calls from here on are those on chosen rows alone."""
        self._whole = len(self.calls)

    def draw(self, greedy: Sequence[Call] = ()) -> None:
        """Note that the calls from here on draw tokens.

        Where all draws are greedy, `greedy` calls can take the place of the last one before these, and of the draws.
        """
        self._undrawn = len(self.calls)
        if greedy:
            self._greedy = Program([*self.calls[:-1], *greedy])

    def finish(self) -> Recording:
        """The recording of all calls. Parts that it does not have are empty ones at its end."""
        undrawn = len(self.calls) if self._undrawn is None else self._undrawn
        whole = undrawn if self._whole is None else self._whole
        return Recording(Program(self.calls), whole, undrawn, self._greedy)
