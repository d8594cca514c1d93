"""Measures sections in this process, one after another, each within its time."""

import faulthandler
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.bench import SMOKE, Bench, Sizes
from benchmarks.chip import facts, measure_rates
from benchmarks.report import Report
from benchmarks.sections import SECTIONS, VARIANTS
from benchmarks.timing import Clock, CudaTimer, Timer, WallTimer
from kernels.load import load_backend


def work(names: Sequence[str], path: Path, *, seconds: float, smoke: bool, variants: bool = False) -> None:
    """Measure the sections `names` in at most `seconds`, and add to the report at `path` if it exists.

    With `variants`, the names are those of kernels whose variants are measured.

    On a GPU, a section that hangs or leaves the device unusable ends the process.
    """
    total = Clock(seconds)
    device = torch.device("cpu" if smoke else "cuda")
    bench = _make_bench(device, path, total, smoke)
    for name in names:
        section = (VARIANTS if variants else SECTIONS)[name]
        if total.left() < 0:
            return
        bench.report.mark(name, ended=False)
        limited = replace(bench, clock=Clock(min(section.seconds, total.left())))
        with _ended_after(min(2 * section.seconds, total.left()), device):
            bench.attempt(f"section {name}", partial(section.measure, limited))
        bench.report.mark(name, ended=True)


@contextmanager
def _ended_after(seconds: float, device: torch.device) -> Iterator[None]:
    """On a GPU, print the stack and end the process if the block takes longer than `seconds`.

    This works even while a kernel never ends, since the watchdog is a C thread that needs no Python thread to run.
    """
    if device.type != "cuda":
        yield
        return
    faulthandler.dump_traceback_later(max(1.0, seconds), exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
    torch.cuda.empty_cache()


def _make_bench(device: torch.device, path: Path, clock: Clock, smoke: bool) -> Bench:
    """The bench for all sections. Measures the chip's rates."""
    sizes = SMOKE if smoke else Sizes()
    timer: Timer = WallTimer() if smoke else CudaTimer.of(device)
    rates = measure_rates(timer, device, elements=sizes.rate_elements, width=sizes.rate_width, dtype=sizes.dtype)
    report = Report.load(path) if path.exists() else Report(facts(device) | rates.facts(), path, smoke=smoke)
    return Bench(device, sizes, load_backend(device, "triton"), timer, rates, clock, report)
