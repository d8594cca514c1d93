"""What the CPU that kernels are compiled for can do, as LLVM names it. It knows nothing of any kernel."""

from functools import cache

import llvmlite.binding as llvm
from numba import config


@cache
def features() -> frozenset[str]:
    """The instruction-set extensions that Numba compiles for: the host's, or NUMBA_CPU_FEATURES if that is set."""
    if config.CPU_FEATURES is not None:
        named = str(config.CPU_FEATURES).split(",")
        return frozenset(name[1:] for name in named if name.startswith("+"))
    if config.CPU_NAME == "generic":
        return frozenset()
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


@cache
def dot_path() -> str:
    """How products of small integers are summed: by the instructions so called, or in portable arithmetic."""
    if {"avx512f", "avx512bw", "avx512vnni"} <= features():
        return "avx512-vnni"
    if "avx2" in features():
        return "avx-vnni" if "avxvnni" in features() else "avx2"
    return "portable"


def register_floats() -> int:
    """How many float32 numbers a register holds that products are summed in."""
    return 16 if dot_path() == "avx512-vnni" else 8
