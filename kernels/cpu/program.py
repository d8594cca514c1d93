"""Programs: lists of operations that several threads run together, chunk by chunk.

Each thread takes the next free chunk of the current operation, and goes on to the next operation once all chunks are
done. Threads wait only for chunks that have been taken, so a thread that the system has descheduled does not delay the
others. Such a thread may wake after the run is over and its tensors are freed. It then reads only the program's
tickets, which tell it to leave.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from kernels.cpu.crew import Crew
from kernels.cpu.operation import SCRATCH_BYTES, WORDS, Operation, machine_code_of

CLOSED = 0
"""A ticket that belongs to no run."""


class Program:
    """Operations with their arguments, in the order in which they run."""

    def __init__(self, steps: Sequence[tuple[Operation, Sequence[int]]]) -> None:
        self.length = len(steps)
        self.operations = [operation for operation, _ in steps]
        self.words = np.zeros((max(1, self.length), WORDS + 1), np.int64)
        for row, (operation, arguments) in zip(self.words, steps, strict=False):
            row[0] = operation.address
            row[1 : 1 + len(arguments)] = arguments
        self.tickets = np.zeros((max(1, self.length), 16), np.int64)
        """[operations, 16] int64: the ticket (word 0), the number of chunks (1), and in another cache line
        epoch << SHIFT plus the number of chunks done (8); see `walk.py`."""
        self.address = self.words.ctypes.data
        self.tickets_address = self.tickets.ctypes.data


class Workers:
    """A pool of threads that run a program together with the calling thread. One program runs at a time."""

    def __init__(self, threads: int) -> None:
        """Start `threads` - 1 threads; the calling thread is counted."""
        self._epoch = 0
        self._crew = Crew(threads)
        self._scratch = [np.zeros(SCRATCH_BYTES + 64, np.uint8) for _ in range(threads)]
        self._current: tuple[Program, int] | None = None
        self._work = _entry("walk:define_run")
        self._open = _entry("walk:define_open")
        self._wake = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._stop = False
        self._threads = [
            threading.Thread(target=self._serve, args=(index,), name=f"kernels-{index}", daemon=True)
            for index in range(1, threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        """Number of threads, the calling one included."""
        return len(self._scratch)

    def run(self, program: Program, prepare: Callable[[], None] | None = None) -> None:
        """Run a program and wait for its end. `prepare` writes the program's inputs before it starts.

        It is called while all tickets are closed, so that no late thread of an earlier run reads half-written inputs.
        """
        self._epoch += 1
        program.tickets[: program.length, 0] = CLOSED
        if prepare is not None:
            prepare()
        run = program.address, program.tickets_address, program.length, self._epoch, self._place(0)
        work = self._open(*run)
        threads = self._crew.choose(work)
        began = time.perf_counter()
        self._current = program, self._epoch
        for semaphore in self._wake[: threads - 1]:
            semaphore.release()
        self._work(*run)
        self._crew.took(work, threads, time.perf_counter() - began)

    def close(self) -> None:
        """Make the threads end."""
        self._stop = True
        for semaphore in self._wake:
            semaphore.release()

    def _serve(self, index: int) -> None:
        while True:
            self._wake[index - 1].acquire()
            if self._stop:
                return
            current = self._current
            if current is not None:
                program, epoch = current
                self._work(program.address, program.tickets_address, program.length, epoch, self._place(index))

    def _place(self, index: int) -> int:
        address: int = self._scratch[index].ctypes.data
        return address + -address % 64


@cache
def _entry(definition: str) -> Callable[..., int]:
    """A compiled function of `walk.py`, as a Python callable that releases the interpreter's lock during a call."""
    address = machine_code_of(definition)
    entry: Callable[..., int] = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 5)(address)
    return entry
