"""Compiles grammars on trial, in a process of its own that can be stopped: a short one can ask for hours and for all
memory.

Run as `python -m service.engine.grammar_trial`: a grammar as JSON in each line of standard input, and in each line of
standard output the grammar in llguidance's form, or the reason why it is refused. Its tokens are the bytes, so it needs
nothing of the model.
"""

import os
import resource
import select
import subprocess
import sys
from pathlib import Path
from threading import Lock
from weakref import finalize

import msgspec
from llguidance import LLTokenizer, TokenizerWrapper

from service.engine.grammar_source import GrammarError, compiled, mask_of, to_llguidance
from service.engine.messages import Grammar
from service.python_command import python_command

TRIAL_SECONDS = 2.0
"""Time of one trial; real schemas take milliseconds."""
TRIAL_BYTES = 64 * 2**20
"""Memory of one grammar."""
_START_SECONDS = 30.0


class _Verdict(msgspec.Struct):
    """The outcome of a trial: the grammar in llguidance's form, or the reason why it is refused."""

    source: str = ""
    refusal: str | None = None


class Trial:
    """The engine's end of the process, which is started when it is first needed. Threads may share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, grammar: Grammar) -> str:
        """The grammar in llguidance's form, once it has compiled within the limits. Raises GrammarError."""
        with self._lock:
            line = self._ask(grammar)
            if line is None:
                self._stop()
                raise GrammarError(
                    f"too complex: it takes more than {TRIAL_SECONDS:g} seconds or {TRIAL_BYTES >> 20} MB to compile"
                )
        verdict = msgspec.json.decode(line, type=_Verdict)
        if verdict.refusal is not None:
            raise GrammarError(verdict.refusal)
        return verdict.source

    def _ask(self, grammar: Grammar) -> bytes | None:
        """The answer of the process about a grammar; None if it is not done in time, or has died of it."""
        known = self._process
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(grammar) + b"\n")
            process.stdin.flush()
            line = _line(process, TRIAL_SECONDS)
        except OSError:
            line = None
        # Memory that earlier grammars left behind may be to blame for a death.
        died_used = line is None and process is known and _ended(process)
        return self._ask(grammar) if died_used else line

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            self._process = subprocess.Popen(
                python_command("service.engine.grammar_trial"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            finalize(self, _end, self._process)
            # It says that it is ready, so that its start does not count as a grammar's time.
            if _line(self._process, _START_SECONDS) is None:
                self._stop()
                raise RuntimeError("the process for trials of grammars does not start")
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            _end(self._process)
            self._process = None


def _ended(process: "subprocess.Popen[bytes]") -> bool:
    """Whether a process that may just have closed its output has ended."""
    try:
        process.wait(0.5)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    with process:  # Closes its pipes and waits.
        pass


def _line(process: "subprocess.Popen[bytes]", seconds: float) -> bytes | None:
    """The next line that a process writes; None if it ends before, or does not begin one in time."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() or None if ready else None


class _Bytes:
    """A vocabulary of the 256 bytes and an end."""

    bos_token_id = None
    eos_token_id = 256
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"</s>")

    def __call__(self, text: str) -> list[int]:
        return [*text.encode()]


def main() -> None:
    """Try the grammars of standard input, until it ends."""
    os.nice(10)
    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=257, eos_token=256)
    _verdict(Grammar("json_schema", "{}", ""), tokenizer)
    _limit_memory()
    _write(_Verdict())
    for line in sys.stdin.buffer:
        _write(_verdict(msgspec.json.decode(line, type=Grammar), tokenizer))


def _limit_memory() -> None:
    """Let the process grow by the memory of one grammar, where Linux says how large it is."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + TRIAL_BYTES,) * 2)


def _verdict(grammar: Grammar, tokenizer: LLTokenizer) -> _Verdict:
    try:
        source = to_llguidance(grammar)
        mask_of(compiled(source, tokenizer))
    except GrammarError as error:
        return _Verdict(refusal=str(error))
    return _Verdict(source)


def _write(verdict: _Verdict) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(verdict) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
