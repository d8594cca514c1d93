"""Kernels in every size that could be chosen for them, each on the same cases: tables to choose from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from triton import next_power_of_2

from benchmarks.attention import (
    Entry,
    decode_entries,
    fp8_entries,
    prefill_entries,
    ragged_entry,
    work_and_floor,
)
from benchmarks.attention_case import FP8, make_case
from benchmarks.bench import Bench, Sizes
from benchmarks.elementwise import DRAWS, FILTERS, SPREAD, draws
from benchmarks.matmul import FORMS, floor_of, projections
from benchmarks.report import MICROSECONDS, Row
from kernels.backend import QuantizedWeight
from kernels.gpu.attention import attend
from kernels.gpu.decode import DECODING, DecodeTiles, Decoding, Splitting
from kernels.gpu.launch import JitLauncher, device_target
from kernels.gpu.matmul import PROJECTING, Projecting, Tiling, linear, pack
from kernels.gpu.matvec import RowTiling
from kernels.gpu.prefill import PrefillTiles, PrefillWarps
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
    "128 to 1024, 8 splits": Splitting(parts=8),
    "128 to 1024, 32 splits": Splitting(parts=32),
    "128 to 2048, 16 splits": Splitting(growths=4),
    "128 to 4096, 16 splits": Splitting(growths=5),
    "256 to 1024, 16 splits": Splitting(smallest_bits=8, growths=2),
    "128": Splitting(growths=0),
    "512": Splitting(smallest_bits=9, growths=0),
    "1024": Splitting(smallest_bits=10, growths=0),
}
"""Keys in the smallest and the largest split, and the number of splits from which they grow, beside those served."""
DECODE_TILES = (
    DecodeTiles(32, 4, 4, 4),
    DecodeTiles(32, 2, 4, 4),
    DecodeTiles(64, 4, 2, 4),
    DecodeTiles(64, 4, 4, 2),
    DecodeTiles(64, 2, 3, 3),
    DecodeTiles(128, 4, 2, 2),
)
"""The tiles to try beside those served."""
PREFILL_TILES = {
    64: (
        PrefillTiles(64, 64, 4, 2),
        PrefillTiles(64, 64, 4, 3),
        PrefillTiles(64, 64, 4, 4),
        PrefillTiles(64, 128, 4, 2),
        PrefillTiles(128, 32, 8, 4),
        PrefillTiles(128, 64, 4, 3),
        PrefillTiles(128, 64, 8, 2),
        PrefillTiles(128, 64, 8, 3),
        PrefillTiles(128, 64, 8, 4),
        PrefillTiles(128, 128, 8, 2),
    ),
    16: (PrefillTiles(64, 64, 4, 3), PrefillTiles(128, 32, 8, 4), PrefillTiles(128, 64, 8, 3)),
    128: (PrefillTiles(64, 128, 4, 2), PrefillTiles(128, 64, 8, 3), PrefillTiles(128, 128, 8, 2)),
}
"""Tokens in a block of the cache -> the tiles to try, with those that an H200 is served with among them."""
PREFILL_WARPS: dict[str, PrefillTiles | PrefillWarps] = {
    "Hopper's own": PrefillWarps(),
    "Hopper's own, 3 stages": PrefillWarps(stages=3),
    "Hopper's own, no turns": PrefillWarps(turns=False),
}
"""The kernel of `kernels.gpu.hopper_prefill`; other chips measure the portable kernel instead."""
FEW_TOKENS = (
    Projecting(folded=True),
    Projecting(step=2, lean=True, folded=True),
    Projecting(step=2),
    Projecting(lean=True),
    Projecting(step=2, lean=True),
    Projecting(Tiling(16, 16, 1, 3), 4, True),
    Projecting(Tiling(32, 16, 2, 3), 1, True),
    Projecting(Tiling(32, 16, 2, 3), 2, True),
    Projecting(Tiling(32, 16, 2, 3), 4, True),
    Projecting(Tiling(32, 16, 2, 5), 1, True),
    Projecting(Tiling(32, 16, 2, 3, 8), 2, True),
    Projecting(Tiling(64, 16, 2, 3), 2, True),
    Projecting(Tiling(64, 16, 4, 3), 2, True),
    Projecting(Tiling(64, 16, 4, 2), 4, True),
    Projecting(Tiling(64, 16, 4, 4, 4), 1, True),
)
MANY_TOKENS = (
    Projecting(lean=True),
    Projecting(Tiling(64, 32, 4, 3), 1, True),
    Projecting(Tiling(64, 64, 4, 2), 1, True),
    Projecting(Tiling(128, 32, 8, 2), 1, True),
    Projecting(Tiling(128, 32, 8, 3), 1, True),
    Projecting(Tiling(128, 64, 8, 2), 1, True),
    Projecting(Tiling(128, 64, 8, 2, 1), 1, True),
    Projecting(Tiling(128, 64, 8, 2), 2, True),
    Projecting(Tiling(128, 128, 8, 2), 1, True),
)
"""Ways of projecting to try beside that served. A tile has fewer tokens where there are fewer."""
INVARIANT = (
    Projecting(wide=Tiling(64, 128, 4, 4)),
    Projecting(wide=Tiling(64, 256, 8, 3)),
    Projecting(wide=Tiling(128, 64, 4, 4)),
    Projecting(wide=Tiling(128, 128, 8, 3)),
    Projecting(wide=Tiling(128, 128, 8, 4)),
)
"""Tilings for many tokens with batch invariance to try beside that for few."""
ROWS = (
    Projecting(rows=RowTiling()),
    Projecting(rows=RowTiling(1, 1024, 4)),
    Projecting(rows=RowTiling(2, 1024, 4)),
    Projecting(rows=RowTiling(8, 1024, 4)),
    Projecting(rows=RowTiling(4, 512, 2)),
    Projecting(rows=RowTiling(4, 2048, 8)),
)
"""Tilings for one token and a dense weight to try beside torch's product."""
NARROWEST = 8
"""Tokens in the smallest tile that a GPU's tensor cores take."""
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


@dataclass(frozen=True, slots=True)
class Table:
    """Variants of attention over the same cases."""

    section: str
    entries: Callable[[Sizes], list[Entry]]
    variants: Mapping[str, Callable[..., object]]
    """Name -> `attend` with what is chosen."""
    cache_dtype: torch.dtype | None = None
    """None for the model's."""
    block_size: int | None = None
    """None for the server's default."""


def _decode_entries(sizes: Sizes) -> list[Entry]:
    return [*decode_entries(sizes), ragged_entry(sizes)]


def _decoding(choices: Mapping[str, Decoding]) -> dict[str, Callable[..., object]]:
    served = {"served": DECODING, "one launch": Decoding(folded=True)}
    return {name: partial(attend, decoding=decoding) for name, decoding in {**served, **choices}.items()}


def _prefill(choices: Sequence[PrefillTiles]) -> dict[str, Callable[..., object]]:
    tiles: dict[str, PrefillTiles | PrefillWarps] = {"tiles " + ",".join(map(str, sizes)): sizes for sizes in choices}
    return {name: partial(attend, prefill=choice) for name, choice in (tiles | PREFILL_WARPS).items()}


_SPLITS = {f"splits {name}": Decoding(splitting) for name, splitting in SPLITTINGS.items()}
_TILES = {"tiles " + ",".join(map(str, tiles)): Decoding(tiles=tiles) for tiles in DECODE_TILES}
_LONG_SPLITS = {
    f"tiles 32,4,4,4, splits to {128 << growths}": Decoding(Splitting(growths=growths), DecodeTiles(32, 4, 4, 4))
    for growths in (4, 5)
}
_FP8_PAIRED = {
    "values in pairs": Decoding(paired=True),
    "one launch, values in pairs": Decoding(folded=True, paired=True),
}

DECODE_TABLES = (
    Table("decode variants", _decode_entries, _decoding(_SPLITS | _TILES | _LONG_SPLITS)),
    Table("decode variants, FP8 cache", fp8_entries, _decoding(_FP8_PAIRED | _TILES | _LONG_SPLITS), FP8),
    Table("decode variants, blocks of 16", decode_entries, _decoding(_TILES), block_size=16),
    Table("decode variants, FP8 cache, blocks of 16", fp8_entries, _decoding(_FP8_PAIRED), FP8, block_size=16),
)
PREFILL_TABLES = tuple(
    Table(f"prefill variants, blocks of {size}", prefill_entries, _prefill(tiles), block_size=size)
    for size, tiles in PREFILL_TILES.items()
)


def measure_decode_variants(bench: Bench) -> None:
    """Measure what can be chosen for decoding: splits and who combines them, tiles, and how FP8 codes are read."""
    _measure_tables(bench, DECODE_TABLES)


def measure_prefill_variants(bench: Bench) -> None:
    """Measure every size of the tiles of prompts and Hopper's own kernel, over caches with blocks of each size."""
    _measure_tables(bench, PREFILL_TABLES)


def _measure_tables(bench: Bench, tables: Sequence[Table]) -> None:
    launch = JitLauncher(device_target(bench.device))
    for table in tables:
        sizes = replace(bench.sizes, block_size=table.block_size or bench.sizes.block_size)
        sized = replace(bench, sizes=sizes)
        entries = table.entries(sizes)
        for entry in entries[:SMOKE_CASES] if bench.report.smoke else entries:
            case = make_case(sized, entry.lengths, table.cache_dtype)
            work, floor = work_and_floor(sized, entry, case)
            for variant, start in table.variants.items():
                row = partial(Row, table.section, entry.case, entry.unit, floor=floor, work=work, variant=variant)
                run = partial(start, launch, case.q, case.cache, case.layout, case.options)
                bench.attempt(f"{table.section}: {entry.case}, {variant}", partial(_measure, bench, row, run))


@dataclass(frozen=True, slots=True)
class ProductTable:
    """Ways of multiplying weights over the same cases."""

    section: str
    tokens: tuple[int, ...]
    projections: tuple[str, ...]
    variants: Mapping[str, Projecting | None]
    """None: torch's product with a dense weight."""
    forms: tuple[str, ...] = ("W4", "W8")
    """Names in FORMS, or DENSE."""
    batch_invariant: bool = False


def _products(choices: Sequence[Projecting]) -> dict[str, Projecting | None]:
    return {"torch dense": None, "served": PROJECTING} | {_product_name(choice): choice for choice in choices}


def _product_name(choice: Projecting) -> str:
    tiles = ",".join(str(size) for size in choice.tiling or choice.wide or choice.rows or () if size is not None)
    step = f"step {choice.step}" * (choice.step > 1)
    return ", ".join(filter(None, (tiles and f"tiles {tiles}", step, "lean" * choice.lean, "folded" * choice.folded)))


DENSE = "dense"
MATMUL_TABLES = (
    ProductTable("matmul variants, few tokens", (1, 16), ("gate and up", "qkv", "down"), _products(FEW_TOKENS)),
    ProductTable("matmul variants, many tokens", (64, 32, 128, 256), ("gate and up",), _products(MANY_TOKENS)),
    ProductTable(
        "matmul variants, one token",
        (1,),
        ("qkv", "attention output", "gate and up", "down"),
        _products(ROWS),
        (DENSE,),
    ),
    ProductTable(
        "matmul variants, batch-invariant",
        (512, 2048),
        ("gate and up", "qkv", "down"),
        _products(INVARIANT),
        (DENSE,),
        batch_invariant=True,
    ),
)


def measure_matmul_variants(bench: Bench) -> None:
    """Measure products with 4-bit, 8-bit and dense weights in every size of tiles, and codes read in either way."""
    for table in MATMUL_TABLES:
        shapes = {name: (out, width) for name, out, width in projections(bench)}
        cases = [(name, form, count) for count in table.tokens for name in table.projections for form in table.forms]
        for name, form, count in cases[:SMOKE_CASES] if bench.report.smoke else cases:
            _measure_products(bench, table, f"{name} {form}, {count} tokens", form, count, *shapes[name])


def _measure_products(
    bench: Bench, table: ProductTable, case: str, form: str, count: int, out: int, width: int
) -> None:
    launch, rows = JitLauncher(device_target(bench.device)), bench.sizes.tokens(count)
    dense, x = bench.random(out, width), bench.random(rows, width)
    weight = dense if form == DENSE else FORMS[form](out, width, bench.device)
    assert isinstance(weight, Tensor | QuantizedWeight)
    packed, floor = pack(weight, None), floor_of(bench, weight, rows)
    multiply = partial(linear, launch, x, packed, batch_invariant=table.batch_invariant)
    for variant, choice in table.variants.items():
        row = partial(Row, table.section, case, MICROSECONDS, floor=floor, variant=variant)
        run = partial(F.linear, x, dense)
        if choice is not None:
            run = partial(multiply, projecting=_fitted(choice, rows))
        bench.attempt(f"{table.section}: {case}, {variant}", partial(_measure, bench, row, run))


def _fitted(choice: Projecting, rows: int) -> Projecting:
    if choice.tiling is None:
        return choice
    tokens = min(choice.tiling.tokens, max(NARROWEST, next_power_of_2(rows)))
    return choice._replace(tiling=choice.tiling._replace(tokens=tokens))


def _measure(bench: Bench, row: Callable[[float], Row], run: Callable[[], object]) -> None:
    bench.report.add(row(bench.timer.cold(run)))
