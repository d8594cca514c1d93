"""Which chip this is, and the rates it reaches itself: what every floor is computed from."""

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
    """What the chip reached in this run, with torch's own kernels."""

    copy: float
    """Bytes a second, read and written, of copying one large tensor to another."""
    read: float
    """Bytes a second of summing one large tensor."""
    matmul: float
    """Operations a second of a large square product of random numbers."""
    launch: float
    """Seconds of a kernel that does next to nothing: what every measurement of one run has in it beside the work."""

    def reading(self, count: float) -> float:
        """Seconds that reading so many bytes takes at the least."""
        return count / max(self.read, self.copy)

    def copying(self, count: float) -> float:
        """Seconds that so many bytes, read and written, take at the least."""
        return count / self.copy

    def computing(self, operations: float) -> float:
        """Seconds that so many operations take at the least."""
        return operations / self.matmul

    def facts(self) -> dict[str, float]:
        """For people."""
        return {
            "copy GB/s": round(self.copy / 1e9, 1),
            "read GB/s": round(self.read / 1e9, 1),
            "matmul TFLOP/s": round(self.matmul / 1e12, 1),
            "smallest kernel us": round(self.launch * 1e6, 2),
        }


def measure_rates(timer: Timer, device: torch.device, *, elements: int, width: int, dtype: torch.dtype) -> Rates:
    """With tensors of `elements` float32 numbers, which the caches must not hold, and matrices of width * width."""
    source, sink = torch.randn(elements, device=device), torch.empty(elements, device=device)
    copy = timer.cold(lambda: sink.copy_(source))
    read = timer.cold(source.sum)
    launch = timer.cold(lambda: sink[:1].add_(1))
    a, b = (torch.randn(width, width, dtype=dtype, device=device) for _ in range(2))
    matmul = timer.steady(lambda: a @ b)
    return Rates(2 * source.nbytes / copy, source.nbytes / read, 2 * width**3 / matmul, launch)


def facts(device: torch.device) -> dict[str, Any]:
    """The chip and the versions that a measurement belongs to."""
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
