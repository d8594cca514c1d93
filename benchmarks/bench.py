"""The bench that every section measures with: device, backend, timer, rates and sizes."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.chip import Rates
from benchmarks.report import Report, Row
from benchmarks.timing import Clock, Timer
from kernels.backend import Backend
from kernels.gpu.backend import TritonBackend


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of the cases: Llama 3.1 8B's on a GPU, tiny ones in a smoke run."""

    dtype: torch.dtype = torch.bfloat16
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    block_size: int = TritonBackend.block_size
    """The server's default."""
    hidden: int = 4096
    mlp: int = 14_336
    vocab: int = 128_256
    layers: int = 32
    rate_elements: int = 1 << 30
    """Elements of the tensors that rates are measured with."""
    rate_width: int = 8192
    """Rows and columns of the matrices that rates are measured with."""
    context_divisor: int = 1
    """The divisor of context lengths and of numbers of tokens and rows."""
    most_sequences: int = 1024

    def tokens(self, count: int) -> int:
        """The number of tokens to measure with, in a context or a batch, where a full run has `count`."""
        return max(count // self.context_divisor, 1)

    def sequences(self, count: int) -> int:
        """The number of sequences to measure with, where a full run has `count`."""
        return min(count, self.most_sequences)


SMOKE = Sizes(
    dtype=torch.float32,
    heads=4,
    kv_heads=2,
    head_dim=64,
    block_size=16,
    hidden=64,
    mlp=64,
    vocab=500,
    layers=1,
    rate_elements=1 << 16,
    rate_width=64,
    context_divisor=512,
    most_sequences=2,
)


@dataclass(frozen=True, slots=True)
class Bench:
    """The tools for measuring, which every section gets."""

    device: torch.device
    sizes: Sizes
    backend: Backend
    timer: Timer
    rates: Rates
    clock: Clock
    """The section's time; when it is over, no more peers are measured."""
    report: Report

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normally distributed numbers of `shape` on the device, in `dtype` or the model's dtype."""
        return torch.randn(shape, dtype=dtype or self.sizes.dtype, device=self.device)

    def attempt(self, name: str, measure: Callable[[], None]) -> None:
        """Call `measure`, which measures a section or a part of one, and report an error in it under `name`.

        Raises the device's error if the device has become unusable.
        """
        try:
            measure()
        except Exception as error:
            traceback.print_exc()
            self.report.fail(f"{name} failed: {_first_line(error)}")
        self._ask_device()

    def peer(self, row: Row, name: str, measure: Callable[[], float]) -> None:
        """Measure a peer for `row`, unless the time is over. A failure of the peer is reported."""
        if self.clock.left() < 0:
            self.report.fail_peer(row, f"{name}: no time")
            return
        try:
            self.report.add_peer(row, name, measure())
        except Exception as error:  # Another library may raise anything; it is reported.
            self.report.fail_peer(row, f"{name}: {_first_line(error)}")
        self._ask_device()

    def _ask_device(self) -> None:
        """Raise if the device has become unusable: after an invalid memory access, every call of a process raises."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
