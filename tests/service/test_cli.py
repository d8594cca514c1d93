"""Whatever goes wrong in a command ends in one plain line and a status other than 0."""

import errno
import json
import os
from pathlib import Path
from typing import NoReturn

import pytest

from service import cli
from tests.byte_tokenizer import save_byte_tokenizer
from tests.model.loading.test_load import CONFIG


def failure(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command says instead of what it is for."""
    assert cli.main(arguments) == 1
    out, error = capfd.readouterr()
    assert out == ""
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
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_byte_tokenizer(tmp_path)
    flags = ("--load-format", "dummy", "--device", "cpu", "--cache-memory", "1000TB")
    assert "lower cache_memory" in failure(capfd, "complete", "hi", "--model", str(tmp_path), *flags)
