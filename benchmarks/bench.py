"""What every section measures with: the chip, the backend, the clock, and how large the cases are."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.chip import Rates
from benchmarks.report import Report, Row
from benchmarks.timing import Clock, Timer
from kernels.backend import Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the cases are: Llama 3.1 8B's on a GPU, tiny ones where only the code is tried."""

    dtype: torch.dtype = torch.bfloat16
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    block_size: int = 64
    hidden: int = 4096
    mlp: int = 14_336
    vocab: int = 128_256
    layers: int = 32
    rate_elements: int = 1 << 30
    rate_width: int = 8192
    context_divisor: int = 1
    """Contexts, and the numbers of tokens and rows, are divided by it."""
    most_sequences: int = 1024

    def tokens(self, count: int) -> int:
        """A context's or a batch's length as it is measured."""
        return max(count // self.context_divisor, 1)

    def sequences(self, count: int) -> int:
        """A batch's size as it is measured."""
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
    """Handed to every section."""

    device: torch.device
    sizes: Sizes
    backend: Backend
    timer: Timer
    rates: Rates
    clock: Clock
    """When the section's time is over, no more peers are measured."""
    report: Report

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normally distributed."""
        return torch.randn(shape, dtype=dtype or self.sizes.dtype, device=self.device)

    def attempt(self, name: str, measure: Callable[[], None]) -> None:
        """A part of a section, or all of it: an error in it is reported, and what comes after it goes on.

        Raises what the device says where it can be used no more.
        """
        try:
            measure()
        except Exception as error:
            traceback.print_exc()
            self.report.fail(f"{name} failed: {_first_line(error)}")
        self._ask_device()

    def peer(self, row: Row, name: str, measure: Callable[[], float]) -> None:
        """Measure a peer for `row`, unless time is over; what it fails with is reported beside the rest."""
        if self.clock.left() < 0:
            self.report.fail_peer(row, f"{name}: no time")
            return
        try:
            self.report.add_peer(row, name, measure())
        except Exception as error:  # Whatever another library raises is its result.
            self.report.fail_peer(row, f"{name}: {_first_line(error)}")
        self._ask_device()

    def _ask_device(self) -> None:
        """An access to memory that is not ours ends a process's use of the GPU: every later call raises."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
