"""Sections on operations bound by memory: norms, activations, rotating and storing, drawing."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.attention_case import FP8
from benchmarks.bench import Bench
from benchmarks.report import GIGABYTES, MICROSECONDS, Row, Unit
from kernels.backend import KVCache, Penalties, Rotation, SamplingBatch, TokenCounts

TOKEN_COUNTS = (1, 64, 8192)
DRAWS = ((1, 10, 25), (32, 27, 60), (128, 77, 150))
"""(rows, microseconds to reach without a filter, with any)"""
FILTERS = {
    "no filter": (0, 1.0, 0.0),
    "top-k": (50, 1.0, 0.0),
    "top-p": (0, 0.9, 0.0),
    "top-k, top-p, min-p": (50, 0.9, 0.05),
}
"""(top_k, top_p, min_p)"""
KNOWN = 2000
"""Tokens of a request that came up."""
SPREAD = {"peaked": 12.0, "flat": 0.3}
"""Standard deviations of logits: a few likely tokens as a trained model has, and all alike as random weights have."""


def measure_elementwise(bench: Bench) -> None:
    """Measure bandwidths. The floor is the time to read every input and write every output once."""
    for count in TOKEN_COUNTS:
        tokens = bench.sizes.tokens(count)
        _norms(bench, count, tokens)
        _activation(bench, count, tokens)
        for cache_dtype in (bench.sizes.dtype, FP8):
            _rotate(bench, count, tokens, cache_dtype)


def measure_sampling(bench: Bench) -> None:
    """Measure draws with filters and without, and edits. The floor of a draw is the time to read the logits once."""
    for count, plain, filtered in DRAWS:
        rows = bench.sizes.sequences(count)
        for shape, spread in SPREAD.items():
            logits = bench.random(rows, bench.sizes.vocab, dtype=torch.float32) * spread
            floor = bench.rates.moving(logits.nbytes)
            for name, filters in FILTERS.items():
                draw = partial(bench.backend.sample, logits, draws(rows, bench.device, *filters))
                case, target = f"{count} rows, {shape}, {name}", plain if name == "no filter" else filtered
                measure = partial(_measure, bench, "sampling", case, MICROSECONDS, draw, floor, target=target)
                bench.attempt(f"sampling {case}", measure)
        _edits(bench, count, rows)


def _edits(bench: Bench, count: int, rows: int) -> None:
    """Measure edits before the draw. The floor is the time to read what they read and write what they write once."""
    device, vocab, known = bench.device, bench.sizes.vocab, min(KNOWN, bench.sizes.vocab)
    logits, order = bench.random(rows, vocab, dtype=torch.float32), torch.arange(rows, device=device)
    tokens = torch.stack([torch.randperm(vocab)[:known] for _ in range(rows)]).int().to(device)
    lengths = torch.full((rows,), known, dtype=torch.int32, device=device)
    counts = TokenCounts(tokens=tokens, times=tokens % 2, lengths=lengths)
    factors = torch.ones(rows, device=device)
    penalties = Penalties(rows=order, requests=order, repetition=factors, presence=factors, frequency=factors)
    masks = torch.full((rows, -(-vocab // 32) * 4), 0x55, dtype=torch.uint8, device=device)
    for name, run, moved in (
        ("penalties", partial(bench.backend.penalise, logits, counts, penalties), 4 * tokens.nbytes),
        # The newest token is a known one, so that counting changes no length.
        ("count", partial(bench.backend.count_tokens, counts, order, tokens[:, -1].long()), tokens.nbytes),
        ("masks", partial(bench.backend.restrict, logits, order, masks), masks.nbytes + logits.nbytes),
    ):
        case, floor = f"{count} rows, {name}", bench.rates.moving(moved)
        bench.attempt(f"sampling {case}", partial(_measure, bench, "sampling", case, MICROSECONDS, run, floor))


def draws(rows: int, device: torch.device, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> SamplingBatch:
    """Sampling parameters of `rows` requests with different seeds, at temperature 1."""

    def floats(value: float) -> torch.Tensor:
        return torch.full((rows,), value, dtype=torch.float32, device=device)

    numbers = torch.arange(rows, device=device)
    top = torch.full((rows,), top_k, dtype=torch.int64, device=device)
    return SamplingBatch(
        temperature=floats(1.0), top_k=top, top_p=floats(top_p), min_p=floats(min_p), seed=numbers, counter=numbers
    )


def _norms(bench: Bench, count: int, tokens: int) -> None:
    x, residual = (bench.random(tokens, bench.sizes.hidden) for _ in range(2))
    weight = bench.random(bench.sizes.hidden)
    rms = partial(bench.backend.add_rms_norm, x, residual, weight, 1e-5)
    layer = partial(bench.backend.add_layer_norm, x, residual, weight, weight, 1e-5)
    _add(bench, f"{count} tokens, add and RMS norm", rms, 4 * x.nbytes)
    _add(bench, f"{count} tokens, add and layer norm", layer, 4 * x.nbytes)


def _activation(bench: Bench, count: int, tokens: int) -> None:
    gate_up = bench.random(tokens, 2 * bench.sizes.mlp)
    run = partial(bench.backend.gated_activation, gate_up, "silu")
    _add(bench, f"{count} tokens, gated SiLU", run, gate_up.nbytes * 1.5)


def _rotate(bench: Bench, count: int, tokens: int, cache_dtype: torch.dtype) -> None:
    sizes, device = bench.sizes, bench.device
    blocks = -(-tokens // sizes.block_size)
    cache = KVCache(
        layers=1,
        blocks=blocks,
        block_size=sizes.block_size,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        dtype=cache_dtype,
        device=device,
    ).layers[0]
    qkv = bench.random(tokens, (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim)
    angles = bench.random(tokens, sizes.head_dim // 2, dtype=torch.float32)
    slots = torch.randperm(blocks * sizes.block_size)[:tokens].to(device)
    run = partial(
        bench.backend.rotate_and_store, qkv, sizes.heads, None, Rotation(angles.cos(), angles.sin()), cache, slots
    )
    written = tokens * sizes.head_dim * (sizes.heads * qkv.itemsize + 2 * sizes.kv_heads * cache_dtype.itemsize)
    name = f"{count} tokens, rotate and store{', FP8 cache' if cache_dtype == FP8 else ''}"
    _add(bench, name, run, qkv.nbytes + 2 * angles.nbytes + written)


def _add(bench: Bench, name: str, run: Callable[[], object], moved: float) -> None:
    floor = bench.rates.moving(moved)
    bench.attempt(name, partial(_measure, bench, "elementwise", name, GIGABYTES, run, floor, moved))


def _measure(
    bench: Bench,
    section: str,
    case: str,
    unit: Unit,
    run: Callable[[], object],
    floor: float,
    work: float = 0.0,
    target: float | None = None,
) -> None:
    bench.report.add(Row(section, case, unit, bench.timer.cold(run), floor, work, target))
