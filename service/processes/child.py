"""A child process: its launch, its lifeline, its silence, its certain end. Knows nothing of what it does.

The lifeline is its standard input. It carries what this process has to say, and its end means that this process is
gone, however that came about.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

SILENT_TICKS = 4
"""In how many parts the time-out of a silent process is waited for."""


class Child:
    """A running child process."""

    def __init__(self, name: str, process: Process, lifeline: int) -> None:
        self.name = name
        self.output = process.stdout
        """What it writes to its standard output, if that is a pipe."""
        self._process = process
        self._lifeline = lifeline

    def tell(self, line: bytes) -> None:
        """Write to its standard input. It is no error if nobody is left to read."""
        with suppress(BrokenPipeError):
            os.write(self._lifeline, line)

    async def exited(self) -> str:
        """Wait for its end; one line that says how it came."""
        code = await self._process.wait()
        return f"{self.name} exited with code {code}" if code >= 0 else f"{self.name} was killed by {_signal(-code)}"

    def kill(self) -> None:
        """End it without asking."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def leave(self, grace_seconds: float) -> None:
        """Wait for the end of a process that was asked to leave, and make sure of it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._process.wait()


@asynccontextmanager
async def launch(
    name: str,
    module: str,
    *arguments: str | bytes,
    files: Sequence[int] = (),
    output: int | None = None,
) -> AsyncIterator[Child]:
    """Run a Python module as a process that lives no longer than this context. Raises OSError if it cannot start.

    It inherits the descriptors `files`; `output` is subprocess's word on its standard output. Signals to this
    process's group do not reach it.
    """
    stdin, lifeline = os.pipe()
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, *arguments),
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
    """Wait until for so many seconds no more has been `heard`; how many may change while it lasts.

    That is counted in ticks, not read off a clock: a pause of this process (a suspended machine, a debugger) is one
    tick, however long, and is not taken for the other's.
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
