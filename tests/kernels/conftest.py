"""The compile gate, started when the tests begin and read when they end.

Compiling every kernel takes minutes, and the tests leave much of the second core idle: beside them it costs little.
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IDLE = 19


@dataclass(frozen=True)
class CompileGate:
    """A run of `python -m kernels.aot` at the lowest priority; `output` is the file that it prints to."""

    process: subprocess.Popen[bytes]
    output: Path

    def wait(self) -> tuple[int, str]:
        """The exit status and what was printed, when it has ended."""
        return self.process.wait(), self.output.read_text()

    def stop(self) -> None:
        """End it and its compilers if it still runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


_GATE = pytest.StashKey[CompileGate]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The gate's verdict is read last, so that nothing waits for it while there are other tests to run."""
    items.sort(key=_reads_the_gate)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the gate if a test reads it."""
    if any(map(_reads_the_gate, session.items)) and not session.config.option.collectonly:
        session.config.stash[_GATE] = _start(session.config)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """No compiler outlives the tests."""
    gate = session.config.stash.get(_GATE, None)
    if gate is not None:
        gate.stop()


@pytest.fixture
def compile_gate(request: pytest.FixtureRequest) -> CompileGate:
    """The gate over every kernel, running since the tests were collected."""
    return request.config.stash[_GATE]


def _reads_the_gate(item: pytest.Item) -> bool:
    return "compile_gate" in getattr(item, "fixturenames", ())


def _start(config: pytest.Config) -> CompileGate:
    output = Path(config.rootpath, ".pytest_cache", "compile-gate.txt")
    output.parent.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with output.open("wb") as file:
        process = subprocess.Popen(
            ["nice", "-n", str(IDLE), sys.executable, "-m", "kernels.aot"],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return CompileGate(process, output)
