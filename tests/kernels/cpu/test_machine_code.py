"""Machine code is compiled once, and again only where its file is missing or damaged."""

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from kernels.cpu import machine_code
from kernels.cpu.build import WALKS, build, check_compiler
from kernels.cpu.compiler import compiled
from kernels.cpu.machine_code import MachineCode, address_of
from kernels.cpu.operation import Operation
from kernels.cpu.operations import angles_operation, keep_operation, pick_operation

_ENGINE = machine_code._engine.__wrapped__


def compile_successor() -> MachineCode:
    return compiled(lambda number: number + 1)


def refuse() -> MachineCode:
    raise AssertionError("this is compiled already")


def compile_caller() -> MachineCode:
    """A function that calls one of Numba's runtime."""
    return compiled(lambda number: int(np.nextafter(np.float64(number), np.inf) == number))


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


def test_a_function_of_numba_is_there_where_machine_code_calls_one(folder: Path) -> None:
    """In another process than the one that compiled it, where Numba has not been imported."""
    assert call(address_of("caller", compile_caller), 41) == 0
    code = """
import sys
from kernels.cpu.machine_code import address_of
address_of("successor", lambda: sys.exit("it has been compiled"))
assert "numba" not in sys.modules
address_of("caller", lambda: sys.exit("it has been compiled"))
assert "numba" in sys.modules
"""
    assert call(address_of("successor", compile_successor), 41) == 42
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)


def test_many_operations_are_compiled_in_processes_of_their_own(folder: Path) -> None:
    """One that cannot be compiled is left to whoever needs it, who sees why."""
    wanted = [pick_operation(), keep_operation(), angles_operation(), Operation("ranks:define_nothing", ())]
    code = f"""
import sys
from kernels.cpu.build import WALKS, build, check_compiler
from kernels.cpu.operation import Operation
check_compiler()
build({wanted[:3]!r}, 2)
assert "numba" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 3 + len(WALKS)
    build(wanted, 2)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not wanted[-1].kept
    with pytest.raises(AttributeError, match="define_nothing"):
        _ = wanted[-1].address


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


def age(folder: Path, days: float) -> None:
    moment = time.time() - days * 24 * 3600
    os.utime(folder, (moment, moment))


def test_what_other_versions_compiled_goes_once_it_is_unused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address_of("successor", compile_successor)
    beside = {days: folder.parent / f"version-{days}" for days in (0, 29, 31, 400)}
    for path in beside.values():
        path.mkdir()
        (path / "file").write_bytes(b"code")
    for days, path in [*beside.items(), (400, folder)]:
        age(path, days)
    machine_code._folder.cache_clear()
    assert machine_code._folder() == folder
    assert [days for days, path in beside.items() if path.exists()] == [0, 29]
    assert time.time() - folder.stat().st_mtime < 60
    forget(monkeypatch)
    assert call(address_of("successor", refuse), 41) == 42


def test_processes_that_start_together_may_remove_the_same(folder: Path) -> None:
    old = [folder.parent / f"old-{number}" for number in range(300)]
    for path in old:
        path.mkdir()
        (path / "file").write_bytes(b"code")
        age(path, 31)
    code = "from kernels.cpu import machine_code; assert machine_code._folder()"
    starts = [subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3]) for _ in range(3)]
    assert [start.wait() for start in starts] == [0, 0, 0]
    assert [*folder.parent.iterdir()] == [folder]


def test_a_process_whose_folder_was_removed_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address_of("successor", compile_successor)
    shutil.rmtree(folder)
    forget(monkeypatch)
    check_compiler()
    assert call(address_of("successor", compile_successor), 41) == 42


def test_a_home_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.setattr(machine_code, "_folder", cache(machine_code._folder.__wrapped__))
    assert machine_code._folder() is None
    assert call(address_of("successor", compile_successor), 1) == 2


def test_all_that_machine_code_depends_on_makes_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code of another version is never loaded: it would compute something else, or end the process."""
    monkeypatch.chdir(tmp_path)
    sources = tmp_path / "sources"
    shutil.copytree(machine_code.SOURCES, sources)
    monkeypatch.setattr(machine_code, "SOURCES", sources)
    versions = [machine_code._version()]
    assert machine_code._version() == versions[0]
    for changed in sorted(sources.glob("*.py"))[::9]:
        changed.write_text(changed.read_text() + "# Changed.\n")
        versions.append(machine_code._version())
    for package in ("numba", "llvmlite", "numpy"):
        with monkeypatch.context() as patch:
            patch.setattr(machine_code, "version", lambda name, package=package: "0" if name == package else "1")
            versions.append(machine_code._version())
    for name in ("cpu", "path_name"):
        with monkeypatch.context() as patch:
            patch.setattr(machine_code, name, lambda: "another")
            versions.append(machine_code._version())
    for name, value in (("CPU_NAME", "x86-64"), ("CPU_FEATURES", ""), ("DISABLE_JIT", "1"), ("OPT", "0"), ("OPT", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(f"NUMBA_{name}", value)
            versions.append(machine_code._version())
    for settings in ("opt: 0", "opt: 1"):
        Path(".numba_config.yaml").write_text(settings)
        versions.append(machine_code._version())
    assert len(set(versions)) == len(versions)


@pytest.mark.parametrize(
    ("variables", "file"),
    [
        ({}, None),
        ({"NUMBA_CPU_NAME": "generic"}, None),
        ({"NUMBA_CPU_NAME": "Generic", "NUMBA_CPU_FEATURES": "+sse2"}, None),
        ({"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2,-avx,+avx2"}, None),
        ({"NUMBA_CPU_FEATURES": ""}, None),
        ({}, "cpu_name: x86-64\ncpu_features: +sse2,+avx2\n"),
        ({"NUMBA_CPU_NAME": "generic"}, "cpu_name: x86-64\n"),
    ],
)
def test_kernels_are_made_for_the_cpu_that_numba_compiles_for(
    variables: Mapping[str, str], file: str | None, tmp_path: Path
) -> None:
    if file is not None:
        (tmp_path / ".numba_config.yaml").write_text(file)
    code = """
from kernels.cpu.target import cpu, features
found = cpu(), features()
import llvmlite.binding as llvm
from numba import config
named = config.CPU_FEATURES
flags = {f"{'+' if on else '-'}{name}" for name, on in llvm.get_host_cpu_features().items()}
wanted = {flag[1:] for flag in (flags if named is None else named.split(",")) if flag.startswith("+")}
assert found[1] == wanted, (found, wanted)
assert found[0].split()[0] == (config.CPU_NAME or llvm.get_host_cpu_name())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[3]), **variables}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True)
