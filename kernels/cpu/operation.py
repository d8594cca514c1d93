"""Operations: compiled functions whose work is divided into chunks that any thread may compute.

The signature is (arguments, chunk, scratch) -> int64. `arguments` is the address of the arguments, up to `WORDS`
integers; `chunk` is the index of the chunk to compute; `scratch` is the address of the calling thread's own memory. For
chunk -1 an operation computes nothing, and returns its number of chunks. `program.py` runs operations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ParamSpec, cast

from numba import cfunc, types

from kernels.cpu.instructions import FLAGS
from kernels.cpu.machine_code import MachineCode, address_of

WORDS = 24
"""Number of int64 words in an operation's arguments."""
SCRATCH_BYTES = 1 << 20
"""Bytes of scratch memory that each thread has for operations."""

Arguments = ParamSpec("Arguments")
Function = Callable[[int, int, int], int]
"""A function with an operation's signature, which Numba compiles."""
SIGNATURE = types.int64(types.int64, types.int64, types.int64)


@dataclass(frozen=True, slots=True)
class Operation:
    """A compiled operation. `address` is the start of its machine code."""

    address: int


def operation(define: Callable[Arguments, Function]) -> Callable[Arguments, Operation]:
    """Make an operation of each choice of compile-time constants, which are `define`'s arguments and have a repr.

    `define` returns the function to compile. It is not called where the machine code has been kept.
    """

    @cache
    def make(*constants: Any) -> Operation:
        name = f"{define.__module__}.{define.__qualname__}{constants}"
        return Operation(address_of(name, lambda: compiled(SIGNATURE, define(*constants))))

    return cast(Callable[Arguments, Operation], make)


def compiled(signature: Any, function: Callable[..., int]) -> MachineCode:
    """Compile a function with C's calling convention."""
    made = cfunc(signature, nopython=True, fastmath=FLAGS, error_model="numpy")(function)
    _, _, (code, _) = made._library.serialize_using_object_code()
    return MachineCode(made.native_name, code)
