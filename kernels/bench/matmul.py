"""Projections of quantised weights beside torch's product with the same weight in the model's dtype."""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F

from kernels.backend import QuantizedWeight, load_backend
from kernels.bench.bench import Bench
from kernels.bench.report import MICROSECONDS, Row

ROWS = (1, 16, 64)
FORMS: tuple[tuple[Literal[4, 8], int], ...] = ((4, 128), (8, 32))
"""(bits, group size)"""


def measure_matmul(bench: Bench) -> None:
    """The four projections of a layer: the floor is the weight's bytes, or the operations where they take longer."""
    for name, out, width in _projections(bench):
        dense = bench.random(out, width)
        for bits, group_size in FORMS:
            weight = _quantized(bits, group_size, out, width, bench.device)
            packed = bench.backend.pack(weight, None)
            stored = weight.codes.nbytes + weight.scales.nbytes
            for count in ROWS:
                rows = bench.sizes.tokens(count)
                x = bench.random(rows, width)
                floor = max(bench.rates.reading(stored), bench.rates.computing(2.0 * rows * out * width))
                seconds = bench.timer.cold(partial(bench.backend.linear, x, packed))
                row = Row("matmul", f"{name} W{bits}, {count} tokens", MICROSECONDS, seconds, floor)
                bench.report.add(row)
                bench.peer(row, "torch dense", partial(bench.timer.cold, partial(F.linear, x, dense)))


def measure_batch_invariance(bench: Bench) -> None:
    """What it costs dense projections that a row's bits do not depend on the batch."""
    invariant = load_backend(bench.device, "triton", batch_invariant=True)
    for name, out, width in _projections(bench):
        dense = bench.random(out, width)
        packed = invariant.pack(dense, None)
        for count in (*ROWS, 2048):
            rows = bench.sizes.tokens(count)
            x = bench.random(rows, width)
            floor = max(bench.rates.reading(dense.nbytes), bench.rates.computing(2.0 * rows * out * width))
            seconds = bench.timer.cold(partial(invariant.linear, x, packed))
            row = Row("batch-invariant matmul", f"{name}, {count} tokens", MICROSECONDS, seconds, floor)
            bench.report.add(row)
            bench.peer(row, "torch dense", partial(bench.timer.cold, partial(F.linear, x, dense)))


def _projections(bench: Bench) -> list[tuple[str, int, int]]:
    """(name, out, in) of a layer's."""
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
