"""Compiles functions by Numba. Knows nothing of what they compute."""

from collections.abc import Callable
from inspect import signature

from numba import cfunc, types

from kernels.cpu.instructions import FLAGS
from kernels.cpu.machine_code import NEVER_CALLED, MachineCode


def compiled(function: Callable[..., int]) -> MachineCode:
    """Compile a function of int64 numbers, which returns another, with C's calling convention.

    Raises ValueError if it calls what only a process that has imported Numba has, such as `np.nextafter`.
    """
    kind = types.int64(*[types.int64] * len(signature(function).parameters))
    made = cfunc(kind, nopython=True, fastmath=FLAGS, error_model="numpy")(function)
    declared = {one.name for one in made._library._final_module.functions if one.is_declaration}
    if foreign := [name for name in declared - {*NEVER_CALLED} if name.startswith(("numba_", "NRT_"))]:
        raise ValueError(f"{function.__qualname__} calls functions of Numba's own: {sorted(foreign)}")
    _, _, (code, _) = made._library.serialize_using_object_code()
    return MachineCode(made.native_name, code)
