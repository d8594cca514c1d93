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
    module = made._library._final_module
    outside = [each.name for each in (*module.functions, *module.global_variables) if each.is_declaration]
    return MachineCode(made.native_name, tuple(name for name in outside if not name.startswith("llvm.")), code)
