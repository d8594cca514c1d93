"""Compiles functions by Numba. Knows nothing of what they compute."""

from collections.abc import Callable
from inspect import signature

from numba import cfunc, types

from kernels.cpu.instructions import FLAGS
from kernels.cpu.machine_code import MachineCode


def compiled(function: Callable[..., int]) -> MachineCode:
    """Compile a function of int64 numbers, which returns another, with C's calling convention."""
    kind = types.int64(*[types.int64] * len(signature(function).parameters))
    made = cfunc(kind, nopython=True, fastmath=FLAGS, error_model="numpy")(function)
    _, _, (code, _) = made._library.serialize_using_object_code()
    return MachineCode(made.native_name, code)
