"""Kernels in every size that could be chosen for them, each on the same cases: tables to choose from."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.attention import decode_entries
from benchmarks.attention_case import make_case
from benchmarks.bench import Bench
from benchmarks.elementwise import DRAWS, FILTERS, SPREAD, draws
from benchmarks.report import MICROSECONDS, Row
from kernels.gpu.attention import attend
from kernels.gpu.decode import Splitting
from kernels.gpu.launch import JitLauncher, device_target
from kernels.gpu.sampling import Tuning, sample

SAMPLING: dict[str, tuple[int, ...]] = {
    "slice": (1024, 4096),
    "strip": (32, 128),
    "slices_a_program": (2, 8),
    "pivots": (2, 4, 16),
    "few": (256,),
    "candidates": (1024, 4096),
    "race_warps": (4,),
    "draw_warps": (4, 16),
}
"""Field of `Tuning` -> the values to try beside the default."""
SPLITTINGS = {
    "128 to 1024, 16 splits": Splitting(),
    "128 to 1024, 8 splits": Splitting(parts=8),
    "128 to 1024, 32 splits": Splitting(parts=32),
    "128 to 2048, 16 splits": Splitting(growths=4),
    "128 to 4096, 16 splits": Splitting(growths=5),
    "256 to 1024, 16 splits": Splitting(smallest_bits=8, growths=2),
    "128": Splitting(growths=0),
    "512": Splitting(smallest_bits=9, growths=0),
    "1024": Splitting(smallest_bits=10, growths=0),
}
"""Keys in the smallest and the largest split, and the number of splits from which they grow: the first is served."""
SMOKE_CASES = 2
"""Cases of a smoke run."""


def tunings() -> Iterator[tuple[str, Tuning]]:
    """The default, and each value to try with all others at their default: (name, tuning)."""
    yield "default", Tuning()
    for field, values in SAMPLING.items():
        for value in values:
            yield f"{field} {value}", replace(Tuning(), **{field: value})


def measure_sampling_variants(bench: Bench) -> None:
    """Measure every tuning of the sampler, with each filter, on peaked and on flat logits."""
    launch = JitLauncher(device_target(bench.device))
    cases = [(count, shape, name) for count, _, _ in DRAWS for shape in SPREAD for name in FILTERS]
    for count, shape, name in cases[:SMOKE_CASES] if bench.report.smoke else cases:
        rows = bench.sizes.sequences(count)
        logits = bench.random(rows, bench.sizes.vocab, dtype=torch.float32) * SPREAD[shape]
        batch = draws(rows, bench.device, *FILTERS[name])
        case, floor = f"{count} rows, {shape}, {name}", bench.rates.moving(logits.nbytes)
        for variant, tuning in tunings():
            row = partial(Row, "sampling variants", case, MICROSECONDS, floor=floor, variant=variant)
            draw = partial(sample, launch, logits, batch, tuning)
            bench.attempt(f"sampling {case}, {variant}", partial(_measure, bench, row, draw))


def measure_decode_variants(bench: Bench) -> None:
    """Measure every splitting of decode attention over the decoding cases."""
    launch = JitLauncher(device_target(bench.device))
    entries = decode_entries(bench.sizes)
    for entry in entries[:SMOKE_CASES] if bench.report.smoke else entries:
        case = make_case(bench, entry.lengths)
        for variant, splitting in SPLITTINGS.items():
            floor = bench.rates.moving(case.bytes)
            row = partial(Row, "decode variants", entry.case, MICROSECONDS, floor=floor, variant=variant)
            run = partial(attend, launch, case.q, case.cache, case.layout, case.options, splitting)
            bench.attempt(f"decode {entry.case}, {variant}", partial(_measure, bench, row, run))


def _measure(bench: Bench, row: Callable[[float], Row], run: Callable[[], object]) -> None:
    bench.report.add(row(bench.timer.cold(run)))
