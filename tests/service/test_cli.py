"""Whatever goes wrong in a command ends in one plain line and a status other than 0."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from service import cli
from tests.service.dummy_model import dummy

pytestmark = pytest.mark.usefixtures("lent_engine")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "--port", "abc"), "port: should be"),
        (("complete", "hi", "--dtype", "int3"), "dtype: should be"),
        (("complete", "hi", "--model", __file__), "test_cli.py"),
    ],
)
def test_what_cannot_be_served(arguments: tuple[str, ...], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert words in failure(capfd, *arguments)


def test_where_models_are(smollm2: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    assert "smollm2-135m-instruct" in capfd.readouterr().out
    assert cli.main(["fetch"]) == 0
    assert capfd.readouterr().out == f"{smollm2}\n"


def test_a_reader_that_has_enough(smollm2: Path) -> None:
    """A pipe into head is no failure that anything has to be said about."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [str(Path(sys.executable).with_name("headlight")), "models"]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")


def failure(capfd: pytest.CaptureFixture[str], command: str, *arguments: str) -> str:
    """The one line that a command says instead of what it is for; a chat may have asked for something to say."""
    assert cli.main([command, *arguments]) == 1
    out, error = capfd.readouterr()
    assert out == "" or (command == "chat" and out.endswith("> "))
    (line,) = error.splitlines()
    assert line.startswith("headlight: ")
    return line


def test_a_home_that_is_nobodys(capfd: pytest.CaptureFixture[str]) -> None:
    assert "'~nobody-of-that-name/x'" in failure(capfd, "models", "--home", "~nobody-of-that-name/x")


@pytest.mark.parametrize("home", ["/dev/null/home", "/proc/home", "/tmp/" + "x" * 300])
def test_a_home_that_cannot_be_written(home: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert "could not be stored" in failure(capfd, "fetch", "--home", home)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/file"), "/a/file: No space left on device"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), "Permission denied"),
        (MemoryError(), "memory is full"),
    ],
)
def test_what_the_system_refuses(
    error: Exception, words: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(cli, "resolve", refuse)
    assert words in failure(capfd, "fetch", "org/name")


def test_a_cache_beyond_the_machine(dummy_flags: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, the engine's."""
    flags = (*dummy_flags, "--cache-memory", "1000TB")
    assert "lower cache_memory" in failure(capfd, "complete", "hi", *flags)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("\udcff",), "surrogate"),
        (("a\0b",), "NUL"),
        (("",), "no tokens"),
        (("hi " * 200,), "maximum context length"),
        (("hi", "--max-tokens", "100"), "100 in the completion"),
        (("hi", "--max-tokens", "0"), "max_tokens"),
        (("hi", "--max-tokens", "many"), "max_tokens: should be an integer"),
        (("hi", "--temperature", "3"), "temperature: should be"),
        (("hi", "--temperature", "nan"), "NaN"),
        (("hi", "--top-k", "-2"), "top_k: should be at least -1"),
        (("hi", "--top-p", "0"), "top_p: should be more than 0"),
        (("hi", "--min-p", "2"), "min_p: should be at most 1"),
        (("hi", "--seed", "1.5"), "seed: should be an integer"),
        (("hi", "--stop", ""), "stop: has an empty string"),
        (("hi", *("--stop", "a") * 17), "17 strings are more than the 16"),
        (("hi", "--schema", "/nowhere/at/all"), "/nowhere/at/all: No such file"),
        (("hi", "--schema", __file__), "not JSON"),
    ],
)
def test_what_a_request_would_be_refused_for(
    arguments: tuple[str, ...], words: str, dummy_flags: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert words in failure(capfd, "complete", *arguments, *dummy_flags)


@pytest.mark.parametrize(
    ("arguments", "line", "errors", "words"),
    [
        (("--system", "\udcff"), b"", "strict", "surrogate"),
        ((), b"hi\n", "strict", "has no chat template"),
        ((), b"\xff\n", "strict", "encoding is utf-8"),
        ((), b"\xff\n", "surrogateescape", "surrogate"),
        ((), b"hi " * 200, "strict", "maximum context length"),
        ((), b"/nothing\n", "strict", "no command /nothing"),
        (("--top-k", "many"), b"", "strict", "top_k: should be an integer"),
    ],
)
def test_what_a_chat_would_be_refused_for(
    arguments: tuple[str, ...],
    line: bytes,
    errors: str,
    words: str,
    dummy_flags: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    flags = dummy(tmp_path) if "template" in words else dummy_flags
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line), "utf-8", errors))
    assert words in failure(capfd, "chat", *arguments, *flags[1:])


@pytest.mark.parametrize(("schema", "words"), [({"type": "strin"}, "schema: "), ([], "schema: should be")])
def test_a_schema_that_cannot_be_followed(
    schema: object, words: str, dummy_flags: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    said = failure(capfd, "complete", "hi", "--max-tokens", "9", "--schema", str(path), *dummy_flags)
    assert said.startswith(f"headlight: {words}")


def test_fields_of_a_request_are_flags(
    dummy_flags: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["한"]}')

    def complete(*arguments: str) -> str:
        assert cli.main(["complete", "hi", "--max-tokens", "12", *arguments, *dummy_flags]) == 0
        return capfd.readouterr().out

    assert complete("--schema", str(schema)) == '"한"\n'
    greedy = complete()
    assert complete("--top-k", "1", "--temperature", "1") == greedy
    assert complete("--seed", "1") != greedy  # It would mean nothing where the likeliest token is taken.
    last = greedy.strip()[-1]
    assert complete("--stop", "nowhere", "--stop", last) == greedy.partition(last)[0] + "\n"


@pytest.fixture
def chat(dummy_flags: tuple[str, ...], tmp_path: Path) -> tuple[str, ...]:
    """A command that chats. Its answers are one character."""
    (tmp_path / "schema.json").write_text('{"enum": [7]}')
    return ("chat", "--schema", str(tmp_path / "schema.json"), *dummy_flags[1:])


def test_a_chat_with_commands(
    chat: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = "one\n/system Be brief.\ntwo\n/undo\n/retry\n/edit 2 //three\n/history\n/clear\n/history\n/help\n\nunread"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert cli.main(chat) == 0
    _, *said = capfd.readouterr().out.splitlines()
    assert said[:6] == [*["> 7", "> > 7", "> > 7", "> 7", "> 1 system: Be brief.", "2 user: //three"]]
    assert said[6:8] == ["3 assistant: 7", "> > 1 system: Be brief."]
    assert said[8].startswith("> /help")
    assert said[-1].startswith("/clear") or said[-2].startswith("/clear")


def test_a_chat_on_a_terminal_goes_on_after_a_refusal(
    chat: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = os.openpty()
    with open(ours, "wb", buffering=0) as keyboard, open(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        keyboard.write(b"hi\n" + b"hi " * 200 + b"\n/what\nho\n/history\n\n")
        assert cli.main([*chat, "--system", "Be brief."]) == 0
    out, error = capfd.readouterr()
    assert error == ""
    assert "maximum context length" in out
    assert "no command /what" in out
    assert out.rstrip("> \n").splitlines()[-5:] == [
        *("> 1 system: Be brief.", "2 user: hi", "3 assistant: 7", "4 user: ho", "5 assistant: 7")
    ]
