"""The machine that a measurement ran on, and the memory that processes take, from Linux's /proc."""

import os
import platform
from pathlib import Path
from typing import Any

PROC = Path("/proc")
_FLAGS = ("avx2", "f16c", "fma", "avx_vnni", "avx512", "amx")
"""Prefixes of the CPU flags that kernels depend on."""


def cores() -> list[int]:
    """The CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0))


def describe(cpuinfo: Path = PROC / "cpuinfo") -> dict[str, Any]:
    """The CPU, the number of usable cores, the instruction sets, memory in GB, the Linux kernel, and Python."""
    cpu = _first_cpu(cpuinfo)
    flags = sorted(flag for flag in cpu.get("flags", "").split() if flag.startswith(_FLAGS))
    return {
        "cpu": cpu.get("model name", platform.machine()),
        "family": cpu.get("cpu family"),
        "model": cpu.get("model"),
        "cores": len(cores()),
        "flags": flags,
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _first_cpu(cpuinfo: Path) -> dict[str, str]:
    if not cpuinfo.exists():
        return {}
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def resident_bytes(root: int) -> int:
    """Proportional set size, in bytes, of process `root` and all its descendants; shared pages count once."""
    return sum(_pss(pid) for pid in tree(root))


def tree(root: int) -> set[int]:
    """The ids of process `root` and all its descendants."""
    parents = _parents()
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _parents() -> dict[int, int]:
    parents = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                # The name in parentheses may contain any character; the state and the parent follow it.
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue  # The process has ended meanwhile.
    return parents


def _pss(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # The process has ended meanwhile, or is a zombie.
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
