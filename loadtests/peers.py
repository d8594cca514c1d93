"""The servers that are compared: reads peers.toml, checks whether they are installed, starts and stops them.

Knows how to put a load on a peer, but not what to measure or how often.
"""

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Protocol

from loadtests.client import Client, ServerError, Target
from loadtests.machine import cores, resident_bytes
from loadtests.throughput import closed_loop

HERE = Path(__file__).parent
MODEL_NAME = "compared"
"""The name under which every server serves the model."""

LIMIT_SECONDS = 3600.0
"""The longest time that a peer runs."""

_START_SECONDS = 900.0
_REPLY_SECONDS = 1800.0
_STOP_SECONDS = 10.0
_END_SECONDS = 2.0
"""The time that a peer has to end after its last answer broke off."""
_POLL_SECONDS = 0.02
_VERSION_SECONDS = 120.0
_MAKE_SECONDS = 600.0
_CACHED_SHARE = 0.05
"""The share of prompt tokens that may be cached: two prompts of random words may begin with the same few."""


@dataclass(frozen=True, slots=True)
class Load:
    """The result of a closed loop."""

    seconds: float
    """The time for all requests together."""
    ttft_seconds: Sequence[float]
    """One entry for each request, like the next two fields."""
    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]
    cached_tokens: int = 0
    """Prompt tokens of all requests that the peer reports as found in its prefix cache."""

    def check(self, requests: int, output_tokens: int) -> None:
        """Raises ServerError unless every request got all its tokens, and computed its prompt instead of finding it."""
        short = [tokens for tokens in self.output_tokens if tokens != output_tokens]
        if len(self.output_tokens) != requests or short:
            counts = f"{short[0]} tokens instead of {output_tokens}" if short else "no answer"
            raise ServerError(f"{max(len(short), 1)} of {requests} requests were cut short: {counts}")
        if self.cached_tokens > _CACHED_SHARE * sum(self.prompt_tokens):
            raise ServerError(f"{self.cached_tokens} of {sum(self.prompt_tokens)} prompt tokens were in a cache")


class Session(Protocol):
    """A running peer."""

    def run(self, prompts: Sequence[str], output_tokens: int, concurrency: int) -> Load:
        """Run a closed loop of greedy completions of exactly `output_tokens`, `concurrency` at once.

        Raises ServerError if one fails.
        """

    def resident_bytes(self) -> int:
        """The memory of all processes of the peer."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server, with ${VARIABLES} in its commands."""

    name: str
    command: Sequence[str]
    version: Sequence[str] = ()
    """The command that prints the installed version."""
    ready: str | None = None
    """Path that answers 200 when the server is ready; None for a peer without HTTP."""
    environment: Mapping[str, str] = field(default_factory=dict)
    makes: str | None = None
    """The file, such as converted weights, that this peer needs and `make` makes."""
    make: Sequence[str] = ()
    """The command that writes this file, as ${TARGET}."""

    def missing(self, variables: Mapping[str, str]) -> str | None:
        """The reason why the peer can't be started; None if it can."""
        words = [*self.command, *self.make, *self.environment.values()]
        for name in re.findall(r"\$\{(PEER_\w+)\}", " ".join(words)):
            value = variables.get(name)
            if value is None:
                return f"{name} is not set"
            if not shutil.which(value) and not Path(value).exists():
                return f"{name}: there is no {value}"
        return None

    def installed_version(self, variables: Mapping[str, str]) -> str:
        """The output of the version command, in one line."""
        if not self.version:
            return "unknown"
        try:
            done = subprocess.run(
                [Template(word).substitute(variables) for word in self.version],
                capture_output=True,
                text=True,
                timeout=_VERSION_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"unknown ({error})"
        return "; ".join((done.stdout.strip() or done.stderr.strip()).splitlines()) or "unknown"

    def prepare(self, variables: Mapping[str, str], log: Path) -> None:
        """Make the peer's file unless it exists; the command prints to `log`.

        Raises ServerError if it fails.
        """
        if self.makes is None or (target := Path(Template(self.makes).substitute(variables))).exists():
            return
        part = target.with_name(f"{target.name}.part")  # So that the next run doesn't take a part for the whole.
        command = [Template(word).substitute({**variables, "TARGET": str(part)}) for word in self.make]
        with log.open("w") as output:
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=_MAKE_SECONDS, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise ServerError(f"{target.name} was not made: {error}") from None
        if done.returncode or not part.exists():
            raise ServerError(f"{target.name} was not made: {_end(done.returncode)}; {_last_line(log)}")
        part.rename(target)

    def start(self, variables: Mapping[str, str], log: Path) -> "_Process":
        """Start the peer in a new process group. Its output goes to `log`, except the replies of a peer without HTTP.

        Raises ServerError if the command cannot be run.
        """
        pipe = subprocess.PIPE if self.ready is None else None
        with log.open("w") as output:
            try:
                return subprocess.Popen(
                    [Template(word).substitute(variables) for word in self.command],
                    env=os.environ
                    | {key: Template(text).substitute(variables) for key, text in self.environment.items()},
                    stdin=pipe or subprocess.DEVNULL,
                    stdout=pipe or output,
                    stderr=output,
                    start_new_session=True,
                )
            except OSError as error:
                raise ServerError(f"{self.name} did not start: {error}") from None


_Process = subprocess.Popen[bytes]


def load_peers(path: Path, made: Path) -> tuple[list[Peer], dict[str, str]]:
    """(peers, variables) of a TOML file. Variables come from the file, this module and, if PEER_*, the environment.

    `made` is the folder for the files that peers make.
    """
    with path.open("rb") as file:
        content = tomllib.load(file)
    peers = [Peer(name, **fields) for name, fields in content["peers"].items()]
    own = {name: os.path.expanduser(os.environ.get(name, value)) for name, value in content["variables"].items()}
    known = {
        "PYTHON": sys.executable,
        "HERE": str(HERE),
        "CORES": str(len(cores())),
        "CPUS": ",".join(map(str, cores())),
        "MADE": str(made.absolute()),
    }
    return peers, {name: value for name, value in os.environ.items() if name.startswith("PEER_")} | own | known


@contextmanager
def started(
    peer: Peer, variables: Mapping[str, str], log: Path, limit: float = LIMIT_SECONDS
) -> Iterator[tuple[Session, float]]:
    """A running peer, and the seconds from its start until it was ready.

    After `limit` seconds it is killed. Raises ServerError then, and if it doesn't start.
    """
    port = _free_port()
    began = time.perf_counter()
    process = peer.start({**variables, "PORT": str(port)}, log)
    watchdog = threading.Timer(limit, _kill, [process])
    watchdog.start()
    try:
        session: Session
        if peer.ready is None:
            session = _Piped(process, log)
        else:
            session = _Served(process, log, f"http://127.0.0.1:{port}", peer.ready)
        yield session, time.perf_counter() - began
    except ServerError as error:
        late = time.perf_counter() - began >= limit
        if late:
            raise ServerError(f"took longer than {limit:g} s: {error}") from None
        raise
    finally:
        watchdog.cancel()
        _stop(process)


class _Served:
    """A peer that speaks HTTP."""

    def __init__(self, process: _Process, log: Path, url: str, ready: str) -> None:
        self._process = process
        self._log = log
        self._target = Target(url, MODEL_NAME, None, ignore_eos=True)
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(url, ready):
            if process.poll() is not None:
                raise ServerError("; ".join(["did not start", *_last_words(process, log)]))
            if time.monotonic() > deadline:
                raise ServerError(f"was not ready after {_START_SECONDS:.0f} s; {_last_line(log)}")
            time.sleep(_POLL_SECONDS)

    def run(self, prompts: Sequence[str], output_tokens: int, concurrency: int) -> Load:
        answers, seconds = closed_loop(self._target, prompts, output_tokens, concurrency)
        if failed := [answer.error for answer in answers if answer.error is not None]:
            whose = f"{len(failed)} of {len(prompts)} requests failed, the first with: {failed[0]}"
            raise ServerError("; ".join([whose, *_last_words(self._process, self._log)]))
        load = Load(
            seconds,
            [answer.ttft or 0.0 for answer in answers],
            [answer.prompt_tokens for answer in answers],
            [answer.completion_tokens for answer in answers],
            sum(answer.cached_tokens for answer in answers),
        )
        load.check(len(prompts), output_tokens)
        return load

    def resident_bytes(self) -> int:
        return resident_bytes(self._process.pid)


class _Piped:
    """A peer that reads jobs from its standard input and writes results, one JSON object a line."""

    def __init__(self, process: _Process, log: Path) -> None:
        self._process = process
        self._log = log
        self._reply(_START_SECONDS)

    def run(self, prompts: Sequence[str], output_tokens: int, concurrency: int) -> Load:
        job = {"prompts": prompts, "output_tokens": output_tokens, "concurrency": concurrency}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ServerError("; ".join([f"takes no job: {error}", *_last_words(self._process, self._log)])) from None
        load = Load(**self._reply(_REPLY_SECONDS))
        load.check(len(prompts), output_tokens)
        return load

    def resident_bytes(self) -> int:
        return resident_bytes(self._process.pid)

    def _reply(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        # Each job has one line of reply, so no data can be left in the reader's buffer, which select would not see.
        readable, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if readable else b""
        try:
            reply: dict[str, Any] = json.loads(line)
        except ValueError:
            what = "broke off" if readable else f"no reply after {seconds:.0f} s"
            raise ServerError("; ".join([what, *_last_words(self._process, self._log)])) from None
        return reply


def _answers(url: str, path: str) -> bool:
    try:
        with Client(url) as client:
            client.get(path)
    except ServerError:
        return False
    return True


def _stop(process: _Process) -> None:
    """Terminate the peer, so that it can stop its own processes; then kill all that is left of its process group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    _kill(process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _kill(process: _Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(status: int) -> str:
    """How a process ended: its exit status, or the name of the signal."""
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _last_words(process: _Process, log: Path) -> list[str]:
    """How a peer that failed ended, and its last line; nothing if it still runs."""
    with suppress(subprocess.TimeoutExpired):
        return [_end(process.wait(_END_SECONDS)), _last_line(log)]
    return []


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
