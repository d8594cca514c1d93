"""The capabilities of the CPU that kernels are compiled for, by LLVM's names. Kernels are not known here."""

import ctypes
import platform
from functools import cache

import llvmlite.binding as llvm
from numba import config


@cache
def features() -> frozenset[str]:
    """Instruction-set extensions that Numba compiles for: the host's, or those in NUMBA_CPU_FEATURES if it is set."""
    if config.CPU_FEATURES is not None:
        named = str(config.CPU_FEATURES).split(",")
        return frozenset(name[1:] for name in named if name.startswith("+"))
    if config.CPU_NAME == "generic":
        return frozenset()
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def cpu() -> str:
    """The CPU's name and all of its features, as Numba compiles for them."""
    name = config.CPU_NAME or llvm.get_host_cpu_name()
    return f"{name} {','.join(sorted(features()))}"


@cache
def dot_path() -> str:
    """Name of the instructions that sum products of small integers: avx512-vnni, avx-vnni, avx2, or portable (none)."""
    if {"avx512f", "avx512bw", "avx512vnni"} <= features():
        return "avx512-vnni"
    if "avx2" in features():
        return "avx-vnni" if "avxvnni" in features() else "avx2"
    return "portable"


def register_floats() -> int:
    """Number of float32 numbers in a register that sums products."""
    return 16 if dot_path() == "avx512-vnni" else 8


@cache
def matrix_unit() -> bool:
    """Whether the CPU has a matrix unit for bfloat16 numbers (Intel's AMX) that this process may use.

    Linux wants a process to ask for it, since its registers take 8 KB of every thread's state.
    """
    if dot_path() != "avx512-vnni" or not {"amx-tile", "amx-bf16"} <= features() or platform.system() != "Linux":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


def path_name() -> str:
    """Name of the instructions that multiply, those for one token and those for many."""
    return f"{dot_path()}, amx" if matrix_unit() else dot_path()
