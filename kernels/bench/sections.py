"""The sections of a run, in the order of their weight: when time is over, the last are left out."""

from collections.abc import Callable

import torch

from kernels.backend import load_backend
from kernels.bench.attention import measure_attention
from kernels.bench.bench import SMOKE, Bench, Sizes
from kernels.bench.chip import facts, measure_rates
from kernels.bench.elementwise import measure_elementwise, measure_sampling
from kernels.bench.end_to_end import measure_end_to_end
from kernels.bench.matmul import measure_batch_invariance, measure_matmul
from kernels.bench.report import Report
from kernels.bench.timing import Clock, CudaTimer, Timer, WallTimer

SECTIONS: dict[str, Callable[[Bench], None]] = {
    "attention": measure_attention,
    "end to end": measure_end_to_end,
    "elementwise": measure_elementwise,
    "sampling": measure_sampling,
    "matmul": measure_matmul,
    "batch invariance": measure_batch_invariance,
}


def make_bench(device: torch.device, *, seconds: float, smoke: bool) -> Bench:
    """What the sections measure with; measures the chip's rates."""
    clock = Clock(seconds)
    sizes = SMOKE if smoke else Sizes()
    timer: Timer = WallTimer() if smoke else CudaTimer.of(device)
    rates = measure_rates(timer, device, elements=sizes.rate_elements, width=sizes.rate_width, dtype=sizes.dtype)
    measured = {
        "copy GB/s": round(rates.copy / 1e9, 1),
        "read GB/s": round(rates.read / 1e9, 1),
        "matmul TFLOP/s": round(rates.matmul / 1e12, 1),
    }
    report = Report(facts(device) | measured, smoke=smoke)
    return Bench(device, sizes, load_backend(device, "triton"), timer, rates, clock, report)
