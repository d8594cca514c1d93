"""Attention over the paged cache: decoding, prompts, and chunks of them, beside their floors and what others reach."""

from dataclasses import replace
from functools import partial

from kernels.bench.attention_case import FP8, Case, Lengths, make_case, ours
from kernels.bench.attention_peers import PEERS, flex
from kernels.bench.bench import Bench
from kernels.bench.report import MICROSECONDS, TERAFLOPS, Row

K = 1024
FLEX_SECONDS = 45.0
"""What flex_attention may take of the run: each shape is compiled anew."""

DECODE = (
    (1, 1 * K, 9),
    (1, 4 * K, 12),
    (1, 32 * K, 42),
    (1, 128 * K, 140),
    (8, 4 * K, 40),
    (8, 16 * K, 138),
    (32, 4 * K, 138),
    (8, 32 * K, 262),
    (64, 8 * K, 525),
)
"""(sequences, context, microseconds to reach): 32 query heads, 8 key heads of 128, bf16."""
PREFILL = ((4, 2 * K, 420), (2, 4 * K, 470), (1, 8 * K, 500), (1, 16 * K, 500))
"""(sequences, tokens, TFLOP/s to reach)"""
FP8_DECODE = ((8, 4 * K), (8, 32 * K), (64, 8 * K))


def measure_attention(bench: Bench) -> None:
    """Ours first, each beside what is quick to measure; flex_attention, which compiles every shape, after all."""
    later = [*_decode(bench), *_prefill(bench)]
    _ragged(bench)
    _fp8(bench)
    end = bench.clock.left() - FLEX_SECONDS
    for row, lengths in later:
        if bench.clock.left() < end:
            bench.report.fail("flex: no time", row)
        else:
            bench.peer(row, "flex", partial(flex, bench, lengths))


def _decode(bench: Bench) -> list[tuple[Row, Lengths]]:
    measured: list[tuple[Row, Lengths]] = []
    for count, context, target in DECODE:
        lengths = [(bench.sizes.tokens(context), 1)] * bench.sizes.sequences(count)
        case = make_case(bench, lengths)
        row = _bandwidth_row(bench, "decode", f"{count} x {context // K}K", case, target)
        _peers(bench, row, case)
        measured.append((row, lengths))
    # A graph serves every context up to the one that its block tables have room for.
    case = make_case(bench, lengths=[(bench.sizes.tokens(4 * K), 1)] * bench.sizes.sequences(8))
    roomy = replace(case.layout, max_context=case.layout.max_context * 32)
    _bandwidth_row(bench, "decode", "8 x 4K, graph for 128K", replace(case, layout=roomy), None)
    return measured


def _ragged(bench: Bench) -> None:
    long, short = bench.sizes.tokens(64 * K), bench.sizes.tokens(1 * K)
    case = make_case(bench, [(long, 1), *[(short, 1)] * (bench.sizes.sequences(32) - 1)])
    row = _bandwidth_row(bench, "decode", "1 x 64K and 31 x 1K", case, None)
    if row.floor is not None:
        row.target = 1.25 * row.shown(row.floor)


def _fp8(bench: Bench) -> None:
    for count, context in FP8_DECODE:
        lengths = [(bench.sizes.tokens(context), 1)] * bench.sizes.sequences(count)
        _bandwidth_row(bench, "decode", f"{count} x {context // K}K, FP8 cache", make_case(bench, lengths, FP8), None)


def _prefill(bench: Bench) -> list[tuple[Row, Lengths]]:
    measured: list[tuple[Row, Lengths]] = []
    for count, tokens, target in PREFILL:
        length = bench.sizes.tokens(tokens)
        lengths = [(length, length)] * bench.sizes.sequences(count)
        case = make_case(bench, lengths)
        operations = case.shape.operations
        row = Row(
            "prefill",
            f"{count} x {tokens // K}K causal",
            TERAFLOPS,
            ours(bench, case),
            floor=bench.rates.computing(operations),
            work=operations,
            target=target,
        )
        bench.report.add(row)
        _peers(bench, row, case)
        measured.append((row, lengths))
    total, new = bench.sizes.tokens(4 * K), bench.sizes.tokens(512)
    lengths = [(total, new)] * 2
    case = make_case(bench, lengths)
    floor = bench.rates.computing(case.shape.operations)
    row = Row("prefill", "2 x 512 new of 4K", MICROSECONDS, ours(bench, case), floor, target=135)
    bench.report.add(row)
    _peers(bench, row, case)
    return [*measured, (row, lengths)]


def _bandwidth_row(bench: Bench, section: str, name: str, case: Case, target: float | None) -> Row:
    moved = case.shape.bytes(case.q.dtype.itemsize, case.cache.keys.dtype.itemsize)
    row = Row(section, name, MICROSECONDS, ours(bench, case), bench.rates.reading(moved), moved, target)
    bench.report.add(row)
    return row


def _peers(bench: Bench, row: Row, case: Case) -> None:
    for name, peer in PEERS.items():
        bench.peer(row, name, partial(peer, bench, case))
