import os
from itertools import islice
from pathlib import Path

import pytest

from service.processes.orphan import remove


def test_a_file_created_during_the_removal_is_removed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    (directory / "socket").touch()
    rmdir, late = os.rmdir, iter(["bound late", "bound later"])

    def rmdir_after_others(path: str, *, dir_fd: int | None = None) -> None:
        for name in islice(late, 1):
            (directory / name).touch()
        rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", rmdir_after_others)
    remove(directory)
    assert not directory.exists()


def test_a_directory_that_is_gone_is_no_error(tmp_path: Path) -> None:
    remove(tmp_path / "missing")
