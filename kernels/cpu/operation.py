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

from kernels.cpu.machine_code import MachineCode, address_of, is_kept

WORDS = 24
"""Number of int64 words in an operation's arguments."""
LINE = 64
"""Bytes of a cache line, the memory that one thread at a time can write to."""
SCRATCH_BYTES = 1 << 20
"""Bytes of scratch memory that each thread has for operations."""

Function = Callable[[int, int, int], int]
"""A function with an operation's signature, which Numba compiles."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A compiled operation: the function that a definition makes of compile-time constants."""

    definition: str
    """Its place, module:function in this package."""
    constants: tuple[Any, ...]
    """Each has a repr that tells it from others."""

    @property
    def address(self) -> int:
        """The start of its machine code, which is compiled now if no file has it."""
        return machine_code_of(self.definition, *self.constants)

    @property
    def kept(self) -> bool:
        """Whether a file has its machine code, or there can be none."""
        return is_kept(_name(self.definition, self.constants))


def operation(definition: str) -> Callable[..., Operation]:
    """The maker of operations from compile-time constants, by a definition as in `Operation`."""
    return lambda *constants: Operation(definition, constants)


@cache
def machine_code_of(definition: str, *constants: Any) -> int:
    """Address of a compiled function; the arguments are as in `Operation`."""

    def compile() -> MachineCode:
        from kernels.cpu.compiler import compiled

        return compiled(pkgutil.resolve_name(f"{__package__}.{definition}")(*constants))

    return address_of(_name(definition, constants), compile)


def _name(definition: str, constants: tuple[Any, ...]) -> str:
    return f"{definition}{constants}"
