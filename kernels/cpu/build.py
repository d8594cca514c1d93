"""Compiles many operations at once, in processes that end when all is done.

Numba compiles one function at a time in a process, and takes 100 MB that the process would keep.
"""

import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from kernels.cpu.machine_code import keeps
from kernels.cpu.operation import Operation

MOST_PROCESSES = 4
"""Each of them needs 200 MB."""

LONGEST = ("attention", "stages", "sampling", "attention_weights", "matmul")
"""Modules whose operations take longest to compile, and are begun with."""
WALKS = [Operation(f"walk:define_{name}", ()) for name in ("open", "run", "serve")]
"""Functions that every program needs."""


def check_compiler() -> None:
    """Find out whether Numba can be used, where it will be needed. Raises ImportError."""
    build(WALKS, 1)
    if not keeps() or not all(walk.kept for walk in WALKS):
        import numba  # noqa: F401


def build(operations: Iterable[Operation], processes: int) -> None:
    """Compile the operations that no file has, in up to so many processes.

    Whatever a process fails to compile is left to whoever needs it first, who then sees the error.
    """
    missing = deque(sorted((each for each in dict.fromkeys(operations) if not each.kept), key=_place))
    count = min(processes, MOST_PROCESSES, len(missing))
    if count == 0:
        return
    with ThreadPoolExecutor(count) as pool:
        for _ in range(count):
            pool.submit(_build, missing)


def _place(operation: Operation) -> int:
    """The place of an operation in the order of compiling."""
    module = operation.definition.partition(":")[0]
    return LONGEST.index(module) if module in LONGEST else len(LONGEST)


def _build(missing: "deque[Operation]") -> None:
    """Have a process compile operations as long as there are any."""
    command = [sys.executable, "-P", "-m", "kernels.cpu.build"]
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with suppress(OSError), subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(IndexError):
            while process.poll() is None:
                pickle.dump(missing.popleft(), process.stdin)
                process.stdin.flush()
                process.stdout.read(1)


def main() -> None:
    """Compile the operations that standard input has, and write a byte after each."""
    # A terminal's interrupt is for the parent, whose end is this one's too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError):
        while True:
            asked = pickle.load(sys.stdin.buffer)
            assert isinstance(asked, Operation)
            _ = asked.address
            sys.stdout.buffer.write(b".")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
