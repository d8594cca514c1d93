"""Sections on quantised and on batch-invariant projections, with torch's dense product as the peer."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.report import MICROSECONDS, Row
from kernels.backend import Fp8Weight, QuantizedWeight
from kernels.load import load_backend

ROWS = (1, 16, 32, 64, 128)
"""Tokens."""
COST = 1.1
"""The factor by which a batch-invariant projection may take longer than the default one."""


def _grouped(bits: Literal[4, 8], group_size: int, out: int, width: int, device: torch.device) -> QuantizedWeight:
    codes = torch.randint(0, 256, (out, width * bits // 8), dtype=torch.uint8, device=device)
    scales = torch.rand(out, width // group_size, device=device).to(torch.float16)
    return QuantizedWeight(codes, scales, None, 1 << (bits - 1), bits, group_size)


def _fp8(height: int, span: int | None, out: int, width: int, device: torch.device) -> Fp8Weight:
    span = span or width
    numbers = torch.randn(out, width, device=device).to(torch.float8_e4m3fn)
    return Fp8Weight(numbers, torch.rand(-(-out // height), -(-width // span), device=device), height, span)


Maker = Callable[[int, int, torch.device], QuantizedWeight | Fp8Weight]
"""Makes a random weight from (out, in, device)."""
FORMS: Mapping[str, Maker] = {
    "W4": partial(_grouped, 4, 128),
    "W8": partial(_grouped, 8, 32),
    "FP8 blocks": partial(_fp8, 128, 128),
    "FP8 channels": partial(_fp8, 1, None),
}
"""The forms of weights that are measured."""


def measure_matmul(bench: Bench) -> None:
    """Measure the quantised projections of a layer. FP8 tensor cores may be faster than the floor."""
    for name, out, width in projections(bench):
        for form, make in FORMS.items():
            case = f"{name} {form}"
            bench.attempt(case, partial(_measure_quantized, bench, case, make, out, width))


def floor_of(bench: Bench, weight: Tensor | QuantizedWeight | Fp8Weight, rows: int) -> float:
    """Seconds to read a weight, or for its products with `rows` tokens in the model's dtype, whichever is longer."""
    out, width = weight.shape
    products = 2.0 * rows * out * width
    return max(bench.rates.moving(_bytes_of(weight)), bench.rates.computing(products))


def _bytes_of(weight: Tensor | QuantizedWeight | Fp8Weight) -> int:
    if isinstance(weight, Tensor):
        return weight.nbytes
    codes = weight.numbers if isinstance(weight, Fp8Weight) else weight.codes
    return codes.nbytes + weight.scales.nbytes


def measure_batch_invariance(bench: Bench) -> None:
    """Measure the dense projections of a layer, batch-invariant against torch's."""
    for name, out, width in projections(bench):
        bench.attempt(f"batch-invariant {name}", partial(_measure_invariant, bench, name, out, width))


def _measure_quantized(bench: Bench, name: str, make: Maker, out: int, width: int) -> None:
    dense = bench.random(out, width)
    weight = make(out, width, bench.device)
    packed = bench.backend.pack(weight, None)
    for count in (*ROWS, 2048):
        rows = bench.sizes.tokens(count)
        x = bench.random(rows, width)
        floor = floor_of(bench, weight, rows)
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
        floor = floor_of(bench, dense, rows)
        usual = bench.timer.cold(partial(bench.backend.linear, x, packed))
        seconds = bench.timer.cold(partial(invariant.linear, x, packed))
        row = Row("batch-invariant matmul", f"{name}, {count} tokens", MICROSECONDS, seconds, floor)
        row.target, row.peers["torch dense"] = row.shown(COST * usual), usual
        bench.report.add(row)


def projections(bench: Bench) -> list[tuple[str, int, int]]:
    """(name, out, in) of each projection of a layer."""
    sizes = bench.sizes
    attended = sizes.heads * sizes.head_dim
    return [
        ("qkv", attended + 2 * sizes.kv_heads * sizes.head_dim, sizes.hidden),
        ("attention output", sizes.hidden, attended),
        ("gate and up", 2 * sizes.mlp, sizes.hidden),
        ("down", sizes.hidden, sizes.mlp),
    ]
