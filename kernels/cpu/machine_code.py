"""Machine code of functions, compiled once on a machine and kept in files.

A file has a checksum, the function's symbol, those that it calls, and an object file of LLVM's. It is loaded in a few
milliseconds, where compiling takes seconds, and without Numba unless it calls a function of Numba's.
"""

import ctypes
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from kernels.cpu.target import SETTINGS, cpu, path_name

SOURCES = Path(__file__).parent
"""The folder of the sources that are compiled, and of what they import of this project."""
CHECKSUM_BYTES = 32
KEPT_SECONDS = 30 * 24 * 3600.0
"""Time for which what another version compiled is kept, from the last start of a process that used it."""
NEVER_CALLED = (
    *("NRT_Free", "NRT_MemInfo_call_dtor", "numba_do_raise", "numba_gil_ensure", "numba_gil_release"),
    *("numba_runtime_build_excinfo_struct", "numba_unpickle"),
)
"""Functions of Numba's that machine code refers to for exceptions and objects. Kernels have neither."""


@dataclass(frozen=True, slots=True)
class MachineCode:
    """An object file, and the symbol of the function that it is for."""

    symbol: str
    called: tuple[str, ...]
    """Symbols of functions and numbers outside of the object file."""
    code: bytes


def address_of(name: str, compile: Callable[[], MachineCode]) -> int:
    """Address of a function, which is compiled if no file has it. Its code is never freed.

    `name` says which function it is, and with which compile-time constants.
    """
    path = _path(name)
    if path is None:
        return load(compile())
    machine_code = _read(path)
    if machine_code is None:
        machine_code = compile()
        _write(path, machine_code)
    return load(machine_code)


def is_kept(name: str) -> bool:
    """Whether a file has the function of this name, or none can be written."""
    path = _path(name)
    return path is None or path.exists()


def keeps() -> bool:
    """Whether what is compiled can be kept. Raises ImportError if Numba is not installed."""
    return _folder() is not None


def _path(name: str) -> Path | None:
    """The file of a function; None if nothing can be kept."""
    folder = _folder()
    return None if folder is None else folder / sha256(name.encode()).hexdigest()[:32]


@cache
def _folder() -> Path | None:
    """The folder of what is compiled here as `_version` says; None if nothing can be kept. Raises ImportError."""
    try:
        folder = Path("~/.cache/headlight/kernels", _version()).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # Used now.
        _remove_unused(folder)
    except (OSError, RuntimeError):
        # The user may have no home, or one that cannot be written.
        return None
    return folder if os.access(folder, os.W_OK) else None


def _remove_unused(folder: Path) -> None:
    """Remove the folders beside `folder` that no process has used for long. Raises OSError if they cannot be listed.

    Others may do the same at this moment. A process whose folder goes compiles what it has not loaded yet.
    """
    longest_ago = time.time() - KEPT_SECONDS
    for other in folder.parent.iterdir():
        with suppress(OSError):
            if other != folder and other.stat().st_mtime < longest_ago:
                shutil.rmtree(other)


def _version() -> str:
    """A digest of all that machine code depends on beside a function's name.

    These are the sources, the CPU, the compiler (Numba, and the packages that it works by) and the compiler's settings.
    Raises ImportError if Numba is not installed.
    """
    parts = [path.read_bytes() for path in sorted(SOURCES.glob("*.py"))]
    parts.append(f"{cpu()} {path_name()}".encode())
    parts.append(f"{sys.version} {' '.join(map(version, ('numba', 'llvmlite', 'numpy')))}".encode())
    settings = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))
    parts.append(repr(settings).encode())
    if SETTINGS.exists():
        parts.append(SETTINGS.read_bytes())
    digest = sha256()
    for part in parts:
        digest.update(sha256(part).digest())
    return digest.hexdigest()[:16]


def _read(path: Path) -> MachineCode | None:
    """The contents of a file; None if there is no file, or it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    checksum, rest = data[:CHECKSUM_BYTES], data[CHECKSUM_BYTES:]
    symbols, _, code = rest.partition(b"\0")
    if sha256(rest).digest() != checksum:
        return None
    symbol, *called = symbols.decode().split()
    return MachineCode(symbol, tuple(called), code)


def _write(path: Path, machine_code: MachineCode) -> None:
    """Write a file. Other processes see all of it or nothing, and on a full disk there is none."""
    data = " ".join((machine_code.symbol, *machine_code.called)).encode() + b"\0" + machine_code.code
    new = path.with_suffix(f".{os.getpid()}")
    try:
        new.write_bytes(sha256(data).digest() + data)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)


def load(machine_code: MachineCode) -> int:
    """Address of the function, whose code is never freed."""
    engine = _engine()
    if any(llvm.address_of_symbol(name) is None for name in machine_code.called):
        # It makes its functions known to LLVM, which ends the process over a symbol that it does not find.
        import numba  # noqa: F401
    engine.add_object_file(llvm.ObjectFileRef.from_data(machine_code.code))
    engine.finalize_object()
    address: int = engine.get_function_address(machine_code.symbol)
    return address


@cache
def _engine() -> Any:
    """The engine that loads object files, and keeps what it has loaded."""
    abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    for name in NEVER_CALLED:
        if llvm.address_of_symbol(name) is None:
            llvm.add_symbol(name, abort)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
