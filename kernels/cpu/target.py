"""The capabilities of the CPU that kernels are compiled for, by LLVM's names. Kernels are not known here."""

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm

SETTINGS = Path(".numba_config.yaml")
"""A file of settings that Numba reads where it finds one in the working directory, beside variables NUMBA_*."""
REGISTER_ROWS = 16
"""Limit of rows in a register of the matrix unit."""
REGISTER_BYTES = 64 * REGISTER_ROWS
"""Bytes in a full register of the matrix unit."""
CONFIGURATION_BYTES = 64
"""Bytes of memory for the configuration of the matrix unit's registers."""


@cache
def features() -> frozenset[str]:
    """Instruction-set extensions that Numba compiles for: the host's, or those in NUMBA_CPU_FEATURES if it is set."""
    name, named = _chosen()
    if named is not None:
        return frozenset(feature[1:] for feature in named.split(",") if feature.startswith("+"))
    if name is not None and name.lower() == "generic":
        return frozenset()
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def cpu() -> str:
    """The CPU's name and all of its features, as Numba compiles for them."""
    name, _ = _chosen()
    return f"{name or llvm.get_host_cpu_name()} {','.join(sorted(features()))}"


def _chosen() -> tuple[str | None, str | None]:
    """The CPU's name and features that Numba is told to compile for; None for what is not told."""
    if SETTINGS.exists():
        # Numba's own reading of the file and the variables; it takes long to import, and such files are rare.
        from numba import config

        return config.CPU_NAME, config.CPU_FEATURES
    return os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")


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
