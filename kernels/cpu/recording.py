"""Recordings: what a backend was asked for, as one program, and the places where a replay of it may end."""

from collections.abc import Sequence
from dataclasses import dataclass

from kernels.cpu.build import build
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
        self._greedy: list[Call] = []
        self._needed: list[Operation] = []

    def narrow(self) -> None:
        """Note that the calls from here on are those on chosen rows alone."""
        self._whole = len(self.calls)

    def draw(self, greedy: Sequence[Call] = ()) -> None:
        """Note that the calls from here on draw tokens.

        Where all draws are greedy, `greedy` calls can take the place of the last one before these, and of the draws.
        """
        self._undrawn = len(self.calls)
        if greedy:
            self._greedy = [*self.calls[:-1], *greedy]

    def need(self, operation: Operation) -> None:
        """Note an operation that is no part of the recording, and is compiled with it so that nobody waits later."""
        self._needed.append(operation)

    def finish(self, threads: int) -> Recording:
        """The recording of all calls for up to so many threads, compiled in up to as many processes.

        Parts that it does not have are empty ones at its end.
        """
        needed = [operation for operation, _ in (*self.calls, *self._greedy)] + self._needed
        build(needed, threads)
        for operation in needed:
            # Compiles it here if it could not be kept.
            _ = operation.address
        undrawn = len(self.calls) if self._undrawn is None else self._undrawn
        whole = undrawn if self._whole is None else self._whole
        greedy = Program(self._greedy, threads) if self._greedy else None
        return Recording(Program(self.calls, threads), whole, undrawn, greedy)
