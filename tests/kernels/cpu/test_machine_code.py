"""Machine code is compiled once, and again only where its file is missing or damaged."""

import ctypes
from functools import cache
from pathlib import Path

import pytest
from numba import types

from kernels.cpu import machine_code
from kernels.cpu.machine_code import MachineCode, address_of
from kernels.cpu.operation import compiled

_ENGINE = machine_code._engine.__wrapped__


def compile_successor() -> MachineCode:
    return compiled(types.int64(types.int64), lambda number: number + 1)


def refuse() -> MachineCode:
    raise AssertionError("this is compiled already")


def call(address: int, number: int) -> int:
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)
    return int(function(number))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of the files, empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(machine_code, "_folder", cache(machine_code._folder.__wrapped__))
    forget(monkeypatch)
    place = machine_code._folder()
    assert place is not None
    return place


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do as another process would, which has loaded nothing yet."""
    monkeypatch.setattr(machine_code, "_engine", cache(_ENGINE))


def test_a_function_is_compiled_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(address_of("successor", compile_successor), 41) == 42
    forget(monkeypatch)
    assert call(address_of("successor", refuse), 41) == 42
    with pytest.raises(AssertionError):
        address_of("another", refuse)


def test_a_damaged_file_is_written_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address_of("successor", compile_successor)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:40], whole[:-9] + b"x" + whole[-8:], b"x" + whole[1:]):
        path.write_bytes(damaged)
        forget(monkeypatch)
        assert call(address_of("successor", compile_successor), 1) == 2
        forget(monkeypatch)
        assert call(address_of("successor", refuse), 1) == 2


def test_a_disk_that_takes_nothing_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert call(address_of("successor", compile_successor), 1) == 2
    assert [*folder.iterdir()] == []


def test_a_home_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.setattr(machine_code, "_folder", cache(machine_code._folder.__wrapped__))
    assert machine_code._folder() is None
    assert call(address_of("successor", compile_successor), 1) == 2
