"""The compile gate, started when the tests begin and read when they end; a plugin of pytest.

Compiling every kernel takes minutes, and the tests leave some of both cores idle: beside them it costs little. With
several workers of pytest-xdist, the process that directs them starts it, and they are told of it.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PRIORITY = 19
"""The lowest one, as `nice` counts."""
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class CompileGate:
    """A run of `python -m kernels.aot` over the tightest cases, at the lowest priority, in a session of its own.

    It is no child of the tests' process, since some tests count that one's children.
    """

    session: int
    output: Path
    """The file that it prints to."""
    status: Path
    """The file that its exit status is written to in the end."""

    def wait(self) -> tuple[int, str]:
        """The exit status and what was printed, when it has ended."""
        while not (self.status.exists() and (status := self.status.read_text().strip())):
            time.sleep(POLL_SECONDS)
        return int(status), self.output.read_text()

    def stop(self) -> None:
        """End it and its compilers if they still run."""
        try:
            os.killpg(self.session, signal.SIGKILL)
        except ProcessLookupError:
            return


_GATE = pytest.StashKey[CompileGate]()
_WORKER = "compile_gate"
"""Name of the gate's session in a worker's input."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the gate before the workers, in a run of all tests."""
    config = session.config
    if config.getoption("numprocesses", None) and not config.option.file_or_dir:
        config.stash[_GATE] = _start(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of the gate."""
    gate = node.config.stash.get(_GATE, None)
    if gate is not None:
        node.workerinput[_WORKER] = gate.session


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The gate's verdict is read last, so that nothing waits for it while there are other tests to run."""
    items.sort(key=_reads_the_gate)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the gate if a test reads it and it does not run yet."""
    config = session.config
    if _told(config) is None and any(map(_reads_the_gate, session.items)) and not config.option.collectonly:
        config.stash[_GATE] = _start(config)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """No compiler outlives the tests."""
    gate = session.config.stash.get(_GATE, None)
    if gate is not None:
        gate.stop()


@pytest.fixture
def compile_gate(request: pytest.FixtureRequest) -> CompileGate:
    """The gate over every kernel, running since the tests were collected."""
    return _told(request.config) or request.config.stash[_GATE]


def _told(config: pytest.Config) -> CompileGate | None:
    """The gate that this worker has been told of."""
    number = getattr(config, "workerinput", {}).get(_WORKER)
    return None if number is None else CompileGate(number, *_files(config))


def _files(config: pytest.Config) -> tuple[Path, Path]:
    """The files of the gate's output and of its exit status."""
    folder = Path(config.rootpath, ".pytest_cache")
    return folder / "compile-gate.txt", folder / "compile-gate-status.txt"


def _reads_the_gate(item: pytest.Item) -> bool:
    return "compile_gate" in getattr(item, "fixturenames", ())


def _start(config: pytest.Config) -> CompileGate:
    output, status = _files(config)
    output.parent.mkdir(exist_ok=True)
    status.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    gate = shlex.join(["nice", "-n", str(PRIORITY), sys.executable, "-m", "kernels.aot", "--extent", "tightest"])
    # The shell leaves at once, so that the gate belongs to no process of ours. Linux shares a CPU among sessions first,
    # and `nice` counts within one alone, so the session gets the priority too.
    lowered = f"echo {PRIORITY} > /proc/self/autogroup"
    command = (
        f"({lowered}; {gate} > {shlex.quote(str(output))} 2>&1; echo $? > {shlex.quote(str(status))}) < /dev/null &"
    )
    shell = subprocess.Popen(
        ["sh", "-c", command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    shell.wait()
    return CompileGate(shell.pid, output, status)
