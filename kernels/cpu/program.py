"""Programs: lists of operations that several threads run together, chunk by chunk.

Each thread has a share of every operation's chunks, the same part of them in each, so that it finds what it has made
itself. It takes the next free chunk of its own share, then those of the others, and goes on to the next operation once
all chunks are done. Threads wait only for chunks that have been taken, so a thread that the system has descheduled does
not delay the others. Such a thread may wake after the run is over and its tensors are freed. It then reads only the
program, which is held for it, and whose tickets tell it to leave.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from kernels.cpu.crew import Crew
from kernels.cpu.operation import LINE, SCRATCH_BYTES, WORDS, Operation, machine_code_of
from kernels.host_memory import large_pages

CLOSED = 0
"""A ticket that belongs to no run."""


class Program:
    """Operations with their arguments, in the order in which they run."""

    def __init__(self, steps: Sequence[tuple[Operation, Sequence[int]]], shares: int) -> None:
        """A program for up to `shares` threads."""
        self.length = len(steps)
        self.words = np.zeros((max(1, self.length), WORDS + 1), np.int64)
        for row, (operation, arguments) in zip(self.words, steps, strict=False):
            row[0] = operation.address
            row[1 : 1 + len(arguments)] = arguments
        self.tickets = np.zeros((max(1, self.length), 1 + shares, LINE // 8), np.int64)
        """[operations, 1 + shares, words] int64, each row in a cache line of its own: an operation's counts, which are
        epoch << SHIFT plus the number of chunks done, and the number of chunks; and the ticket of each share. See
        `walk.py`."""
        self.run = np.array([self.words.ctypes.data, self.tickets.ctypes.data, self.length, 0, shares], np.int64)
        """The newest run of this program: a `walk.Run`."""
        self.address = self.run.ctypes.data
        """Address of `run`."""


class Workers:
    """A pool of threads that run a program together with the calling thread. One program runs at a time."""

    def __init__(self, threads: int) -> None:
        """Start `threads` - 1 threads; the calling thread is counted."""
        self._epoch = 0
        self._crew = Crew(threads)
        self._memory = large_pages(threads * SCRATCH_BYTES)
        self._scratch = [self._memory.data_ptr() + SCRATCH_BYTES * index for index in range(threads)]
        """Address of each thread's scratch memory, at the beginning of a page."""
        self._work = _entry("walk:define_run", 3)
        self._open = _entry("walk:define_open", 2)
        self._current = np.zeros(1, np.int64)
        """The address of the current run, for threads that wake."""
        self._awake = np.zeros((threads, 8), np.int64)
        """Two words for each thread, in a cache line of its own; see `walk.define_serve`."""
        self._held: list[Program] = []
        """The programs that a thread may still read, the current one last."""
        # Threads wait in machine code, since in Python they would also wait for the interpreter's lock.
        self._woken, self._wake = os.pipe()
        for index in range(1, threads):
            threading.Thread(target=self._serve, args=(index,), name=f"kernels-{index}", daemon=True).start()

    @property
    def count(self) -> int:
        """Number of threads, the calling one included."""
        return len(self._scratch)

    def run(self, program: Program, prepare: Callable[[], None] | None = None, operations: int | None = None) -> None:
        """Run a program, or only so many of its first operations, and wait for its end.

        `prepare` writes the program's inputs before it starts. It is called while all tickets are closed, so that no
        late thread of an earlier run reads half-written inputs.
        """
        self._epoch += 1
        program.tickets[: program.length, 1:, 0] = CLOSED
        if prepare is not None:
            prepare()
        length, epoch = program.length if operations is None else operations, self._epoch
        program.run[2:4] = length, epoch
        self._hold(program)
        work = self._open(program.address, self._scratch[0])
        threads = self._crew.choose(work)
        began = time.perf_counter()
        self._current[0] = program.address
        if threads > 1:
            os.write(self._wake, bytes(threads - 1))
        self._work(program.address, self._scratch[0], 0)
        self._crew.took(work, threads, time.perf_counter() - began)

    def close(self) -> None:
        """Make the threads end."""
        os.close(self._wake)

    def _hold(self, program: Program) -> None:
        """Keep a program for the threads that will read it, and let go of those before it that no thread reads.

        It is called before the program is the current one. A thread that wakes now reads the one before.
        """
        if not self._awake[:, 0].any():
            del self._held[:-1]
        if program not in self._held[-1:]:
            self._held.append(program)

    def _serve(self, index: int) -> None:
        serve = _entry("walk:define_serve", 5)
        serve(self._woken, self._current.ctypes.data, self._awake[index].ctypes.data, self._scratch[index], index)


@cache
def _entry(definition: str, arguments: int) -> Callable[..., int]:
    """A compiled function of `walk.py`, as a Python callable that releases the interpreter's lock during a call."""
    address = machine_code_of(definition)
    entry: Callable[..., int] = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * arguments)(address)
    return entry
