"""Whatever goes wrong in a command ends in one plain line and a status other than 0."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from service import cli
from tests.byte_tokenizer import save_byte_tokenizer
from tests.model.loading.test_load import CONFIG


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


def test_a_cache_beyond_the_machine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, the engine's."""
    flags = (*dummy(tmp_path), "--cache-memory", "1000TB")
    assert "lower cache_memory" in failure(capfd, "complete", "hi", *flags)


def dummy(folder: Path, template: str = "") -> tuple[str, ...]:
    """The flags of a command for a tiny model, which is put into a folder: random weights, a token for each byte."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 256, "eos_token_id": 0}))
    save_byte_tokenizer(folder)
    if template:
        (folder / "chat_template.jinja").write_text(template)
    flags = ("--load-format", "dummy", "--device", "cpu", "--backend", "reference", "--cache-memory", "1MB")
    return ("--model", str(folder), *flags)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("\udcff",), "surrogate"),
        (("a\0b",), "NUL"),
        (("",), "no tokens"),
        (("hi " * 200,), "leaves no room"),
        (("hi", "--max-tokens", "100"), "max_tokens of 100"),
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
    arguments: tuple[str, ...], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert words in failure(capfd, "complete", *arguments, *dummy(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "line", "errors", "words"),
    [
        (("--system", "\udcff"), b"", "strict", "surrogate"),
        ((), b"hi\n", "strict", "has no chat template"),
        ((), b"\xff\n", "strict", "encoding is utf-8"),
        ((), b"\xff\n", "surrogateescape", "surrogate"),
        ((), b"hi " * 200, "strict", "leaves no room"),
        ((), b"/nothing\n", "strict", "no command /nothing"),
        (("--top-k", "many"), b"", "strict", "top_k: should be an integer"),
    ],
)
def test_what_a_chat_would_be_refused_for(
    arguments: tuple[str, ...],
    line: bytes,
    errors: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    template = "" if "template" in words else "{% for message in messages %}{{ message.content }}{% endfor %}"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line), "utf-8", errors))
    assert words in failure(capfd, "chat", *arguments, *dummy(tmp_path, template)[1:])


TEMPLATE = "{% for message in messages %}[{{ message.content }}]{% endfor %}"


@pytest.mark.parametrize(("schema", "words"), [({"type": "strin"}, "schema: "), ([], "schema: should be")])
def test_a_schema_that_cannot_be_followed(
    schema: object, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    said = failure(capfd, "complete", "hi", "--max-tokens", "9", "--schema", str(path), *dummy(tmp_path))
    assert said.startswith(f"headlight: {words}")


def test_fields_of_a_request_are_flags(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["한"]}')
    flags = dummy(tmp_path)

    def complete(*arguments: str) -> str:
        assert cli.main(["complete", "hi", "--max-tokens", "12", *arguments, *flags]) == 0
        return capfd.readouterr().out

    assert complete("--schema", str(schema)) == '"한"\n'
    greedy = complete()
    assert complete("--top-k", "1", "--temperature", "1") == greedy
    assert complete("--seed", "1") != greedy  # It would mean nothing where the likeliest token is taken.
    last = greedy.strip()[-1]
    assert complete("--stop", "nowhere", "--stop", last) == greedy.partition(last)[0] + "\n"


def chat(folder: Path, *arguments: str) -> list[str]:
    """A command that chats with a tiny model. Its answers are one character."""
    flags = ("--schema", str(folder / "schema.json"), *dummy(folder, TEMPLATE)[1:])
    (folder / "schema.json").write_text('{"enum": [7]}')
    return [sys.executable, "-m", "service.cli", "chat", *arguments, *flags]


def test_a_chat_with_commands(tmp_path: Path) -> None:
    lines = "one\n/system Be brief.\ntwo\n/undo\n/retry\n/edit 2 //three\n/history\n/clear\n/history\n/help\n\nunread"
    done = subprocess.run(chat(tmp_path), input=lines, capture_output=True, text=True, check=True)
    _, *said = done.stdout.splitlines()
    assert said[:6] == [*["> 7", "> > 7", "> > 7", "> 7", "> 1 system: Be brief.", "2 user: //three"]]
    assert said[6:8] == ["3 assistant: 7", "> > 1 system: Be brief."]
    assert said[8].startswith("> /help")
    assert said[-1].startswith("/clear") or said[-2].startswith("/clear")


def test_a_chat_on_a_terminal_goes_on_after_a_refusal(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    command = chat(tmp_path, "--system", "Be brief.")
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        os.close(theirs)
        os.write(ours, b"hi\n" + b"hi " * 200 + b"\n/what\nho\n/history\n\n")
        out, error = running.communicate(timeout=100)
        os.close(ours)
    assert (running.returncode, error) == (0, "")
    assert "leaves no room" in out
    assert "no command /what" in out
    assert out.rstrip("> \n").splitlines()[-5:] == [
        *("> 1 system: Be brief.", "2 user: hi", "3 assistant: 7", "4 user: ho", "5 assistant: 7")
    ]
