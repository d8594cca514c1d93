"""A child process: its birth, its lifeline, its silence, its certain end. Knows nothing of the child's work.

The lifeline is the child's standard input. It carries messages from this process, and its end means that this process
is gone, however that came about.
"""

import asyncio
import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from service.python_command import python_command

SILENT_TICKS = 4
"""Number of ticks into which the timeout of a silent process is divided."""


class Child:
    """A running child process."""

    def __init__(self, name: str, process: Process, lifeline: int) -> None:
        self.name = name
        self.output = process.stdout
        """The reading end of the child's standard output, if that is a pipe."""
        self._process = process
        self._lifeline = lifeline

    def tell(self, line: bytes) -> None:
        """Write a line to the child's standard input. It is no error if the child is gone."""
        with suppress(BrokenPipeError):
            os.write(self._lifeline, line)

    async def exited(self) -> str:
        """Wait for the child's end; returns one line that says how it ended."""
        code = await self._process.wait()
        return f"{self.name} exited with code {code}" if code >= 0 else f"{self.name} was killed by {_signal(-code)}"

    def kill(self) -> None:
        """End the child at once."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def leave(self, grace_seconds: float) -> None:
        """Wait up to `grace_seconds` for the end of a child that was asked to leave, then kill it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._process.wait()


@asynccontextmanager
async def spawn(
    name: str,
    module: str,
    *arguments: str | bytes,
    files: Sequence[int] = (),
    output: int | None = None,
) -> AsyncIterator[Child]:
    """Run a Python module as a process that lives no longer than this context. Raises OSError if it cannot start.

    The child inherits the descriptors `files`; `output` is subprocess's value for its standard output. Signals to this
    process's group do not reach the child.
    """
    stdin, lifeline = os.pipe()
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *python_command(module, *arguments),
                stdin=stdin,
                stdout=output,
                pass_fds=files,
                start_new_session=True,
            )
        finally:
            os.close(stdin)
        child = Child(name, process, lifeline)
        try:
            yield child
        finally:
            child.kill()
            await process.wait()
    finally:
        os.close(lifeline)


async def silence(heard: Callable[[], int], seconds: Callable[[], float]) -> None:
    """Wait until the count `heard` has not risen for `seconds`, which may change during the wait.

    Time is counted in ticks instead of read off a clock: a pause of this process (a suspended machine, a debugger) is
    one tick, however long, and is not taken for the child's silence.
    """
    silent = 0
    while silent < SILENT_TICKS:
        before = heard()
        await asyncio.sleep(seconds() / SILENT_TICKS)
        silent = silent + 1 if heard() == before else 0


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
