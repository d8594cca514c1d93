"""The chip, and the rates it reaches, from which every floor is computed."""

import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import triton

from benchmarks.timing import Timer

PEERS = ("transformers", "flashinfer-python")


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates that the chip reached in this run with torch's own kernels."""

    copy: float
    """Bytes read and written a second by a kernel that reads one large tensor and writes another."""
    read: float
    """Bytes read a second, in the sum of one large tensor."""
    matmul: float
    """Operations a second, in a large square product of random numbers."""
    launch: float
    """Seconds that an almost empty kernel takes: the overhead in every measurement of a single run."""

    def moving(self, count: float) -> float:
        """The least number of seconds for moving `count` bytes, those read and those written together.

        Whichever of the two rates is higher, the memory has it.
        """
        return count / max(self.read, self.copy)

    def computing(self, operations: float) -> float:
        """The least number of seconds for `operations` multiplications and additions."""
        return operations / self.matmul

    def facts(self) -> dict[str, float]:
        """The rates in the units of the report."""
        return {
            "copy GB/s": round(self.copy / 1e9, 1),
            "read GB/s": round(self.read / 1e9, 1),
            "matmul TFLOP/s": round(self.matmul / 1e12, 1),
            "smallest kernel us": round(self.launch * 1e6, 2),
        }


def measure_rates(timer: Timer, device: torch.device, *, elements: int, width: int, dtype: torch.dtype) -> Rates:
    """Measure the rates with tensors of `elements` float32 numbers and square matrices of `width` rows in `dtype`.

    The tensors must be larger than the caches.
    """
    source, sink = torch.randn(elements, device=device), torch.empty(elements, device=device)
    # Not `copy_`: a graph holds it as a node of the copy engine, which reaches two thirds of what kernels reach.
    copy = timer.cold(lambda: torch.mul(source, 2.0, out=sink))
    read = timer.cold(source.sum)
    launch = timer.cold(lambda: sink[:1].add_(1))
    a, b = (torch.randn(width, width, dtype=dtype, device=device) for _ in range(2))
    matmul = timer.steady(lambda: a @ b)
    return Rates(2 * source.nbytes / copy, source.nbytes / read, 2 * width**3 / matmul, launch)


def facts(device: torch.device) -> dict[str, Any]:
    """The chip, driver and library versions of a measurement."""
    cuda = device.type == "cuda"
    return {
        "chip": torch.cuda.get_device_name(device) if cuda else "CPU, interpreted",
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda or torch.version.hip,
        "torch": torch.__version__,
        "triton": triton.__version__,
        **{name: _version(name) for name in PEERS},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
