"""Operations: compiled functions whose work is divided into chunks that any thread may compute.

The signature is (arguments, chunk, scratch) -> int64. `arguments` is the address of the arguments, up to `WORDS`
integers that `arguments.py` names; `chunk` is the index of the chunk to compute; `scratch` is the address of the
calling thread's own memory. For chunk -1 an operation computes nothing, and returns its number of chunks. `program.py`
runs operations.

A definition makes the function to compile of compile-time constants. Numba and all definitions are imported only where
machine code is missing: they take as long to import as a model of 100 MB takes to load.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from kernels.cpu.machine_code import MachineCode, address_of

WORDS = 24
"""Number of int64 words in an operation's arguments."""
SCRATCH_BYTES = 1 << 20
"""Bytes of scratch memory that each thread has for operations."""

Function = Callable[[int, int, int], int]
"""A function with an operation's signature, which Numba compiles."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A compiled operation. `address` is the start of its machine code."""

    address: int


def operation(definition: str) -> Callable[..., Operation]:
    """The maker of operations from compile-time constants, by a definition as in `machine_code_of`."""

    @cache
    def make(*constants: Any) -> Operation:
        return Operation(machine_code_of(definition, *constants))

    return make


def machine_code_of(definition: str, *constants: Any) -> int:
    """Address of a compiled function. `definition` is module:function in this package; constants have a repr."""

    def compile() -> MachineCode:
        from kernels.cpu.compiler import compiled

        return compiled(pkgutil.resolve_name(f"{__package__}.{definition}")(*constants))

    return address_of(f"{definition}{constants}", compile)
