"""Sections on quantised and on batch-invariant projections, with torch's dense product as the peer."""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F

from benchmarks.bench import Bench
from benchmarks.report import MICROSECONDS, Row
from kernels.backend import QuantizedWeight
from kernels.load import load_backend

ROWS = (1, 16, 32, 64, 128)
"""Tokens."""
FORMS: tuple[tuple[Literal[4, 8], int], ...] = ((4, 128), (8, 32))
"""(bits, group size)"""
COST = 1.1
"""The factor by which a batch-invariant projection may take longer than the default one."""


def measure_matmul(bench: Bench) -> None:
    """Measure the quantised projections of a layer.

    The floor is the time to read the weight or the time for the arithmetic, whichever is longer.
    """
    for name, out, width in _projections(bench):
        for bits, group_size in FORMS:
            case = f"{name} W{bits}"
            bench.attempt(case, partial(_measure_quantized, bench, case, out, width, bits, group_size))


def measure_batch_invariance(bench: Bench) -> None:
    """Measure the dense projections of a layer, batch-invariant against torch's."""
    for name, out, width in _projections(bench):
        bench.attempt(f"batch-invariant {name}", partial(_measure_invariant, bench, name, out, width))


def _measure_quantized(bench: Bench, name: str, out: int, width: int, bits: Literal[4, 8], group_size: int) -> None:
    dense = bench.random(out, width)
    weight = _quantized(bits, group_size, out, width, bench.device)
    packed = bench.backend.pack(weight, None)
    stored = weight.codes.nbytes + weight.scales.nbytes
    for count in ROWS:
        rows = bench.sizes.tokens(count)
        x = bench.random(rows, width)
        floor = max(bench.rates.moving(stored), bench.rates.computing(2.0 * rows * out * width))
        seconds = bench.timer.cold(partial(bench.backend.linear, x, packed))
        row = Row("matmul", f"{name}, {count} tokens", MICROSECONDS, seconds, floor)
        bench.report.add(row)
        bench.peer(row, "torch dense", partial(bench.timer.cold, partial(F.linear, x, dense)))


def _measure_invariant(bench: Bench, name: str, out: int, width: int) -> None:
    invariant = load_backend(bench.device, "triton", batch_invariant=True)
    dense = bench.random(out, width)
    packed = invariant.pack(dense, None)
    for count in (*ROWS, 2048):
        rows = bench.sizes.tokens(count)
        x = bench.random(rows, width)
        floor = max(bench.rates.moving(dense.nbytes), bench.rates.computing(2.0 * rows * out * width))
        usual = bench.timer.cold(partial(bench.backend.linear, x, packed))
        seconds = bench.timer.cold(partial(invariant.linear, x, packed))
        row = Row("batch-invariant matmul", f"{name}, {count} tokens", MICROSECONDS, seconds, floor)
        row.target, row.peers["torch dense"] = row.shown(COST * usual), usual
        bench.report.add(row)


def _projections(bench: Bench) -> list[tuple[str, int, int]]:
    """(name, out, in) of each projection of a layer."""
    sizes = bench.sizes
    attended = sizes.heads * sizes.head_dim
    return [
        ("qkv", attended + 2 * sizes.kv_heads * sizes.head_dim, sizes.hidden),
        ("attention output", sizes.hidden, attended),
        ("gate and up", 2 * sizes.mlp, sizes.hidden),
        ("down", sizes.hidden, sizes.mlp),
    ]


def _quantized(bits: Literal[4, 8], group_size: int, out: int, width: int, device: torch.device) -> QuantizedWeight:
    codes = torch.randint(0, 256, (out, width * bits // 8), dtype=torch.uint8, device=device)
    scales = torch.rand(out, width // group_size, device=device).to(torch.float16)
    return QuantizedWeight(codes, scales, None, 1 << (bits - 1), bits, group_size)
