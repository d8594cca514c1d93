"""Sections on attention over the paged cache: decoding, prompts and chunks of prompts, with floors and peers."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

from benchmarks.attention_case import FP8, Case, Lengths, make_case
from benchmarks.attention_peers import flex, peers
from benchmarks.bench import Bench, Sizes
from benchmarks.report import MICROSECONDS, TERAFLOPS, Row, Unit

K = 1024

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
"""(sequences, context, microseconds to reach), for 32 query heads and 8 key heads of 128 dimensions in bf16."""
PREFILL = ((4, 2 * K, 420), (2, 4 * K, 470), (1, 8 * K, 500), (1, 16 * K, 500))
"""(sequences, tokens, TFLOP/s to reach)"""
FP8_DECODE = ((8, 4 * K), (8, 32 * K), (64, 8 * K))
"""(sequences, context)"""
SHARE = 0.8
"""The share of the floor to reach for sequences of different lengths and for large FP8 caches."""
LARGE = 1 << 29
"""Bytes from which an FP8 case counts as large."""


class Entry(NamedTuple):
    """A line of the tables above, scaled to the sizes that are measured."""

    section: str
    case: str
    lengths: Lengths
    unit: Unit
    target: float | None
    """The value to reach, in `unit`."""


def decode_entries(sizes: Sizes) -> list[Entry]:
    """The entries of `DECODE`."""
    return [
        Entry("decode", f"{count} x {context // K}K", _decoding(sizes, count, context), MICROSECONDS, target)
        for count, context, target in DECODE
    ]


def prefill_entries(sizes: Sizes) -> list[Entry]:
    """The entries of `PREFILL`, one with chunks of two prompts, and one that the causal mask takes hardly part of."""
    entries = [
        Entry("prefill", f"{count} x {tokens // K}K causal", _prompts(sizes, count, tokens), TERAFLOPS, target)
        for count, tokens, target in PREFILL
    ]
    chunks = [(sizes.tokens(4 * K), sizes.tokens(512))] * 2
    last = [(sizes.tokens(16 * K), sizes.tokens(K))]
    return [
        *entries,
        Entry("prefill", "2 x 512 new of 4K", chunks, MICROSECONDS, 135),
        Entry("prefill", "1K new of 16K, 97% unmasked", last, TERAFLOPS, 530),
    ]


def ragged_entry(sizes: Sizes) -> Entry:
    """Decoding of one long sequence beside many short ones."""
    lengths = [*_decoding(sizes, 1, 64 * K), *_decoding(sizes, sizes.sequences(32) - 1, 1 * K)]
    return Entry("decode", "1 x 64K and 31 x 1K", lengths, MICROSECONDS, None)


def fp8_entries(sizes: Sizes) -> list[Entry]:
    """The entries of `FP8_DECODE`."""
    return [
        Entry("decode", f"{count} x {context // K}K, FP8 cache", _decoding(sizes, count, context), MICROSECONDS, None)
        for count, context in FP8_DECODE
    ]


def measure_decode(bench: Bench) -> None:
    """Measure decoding. The floor is the time to read every key and value once."""
    for entry in decode_entries(bench.sizes):
        bench.attempt(f"decode {entry.case}", partial(_measure, bench, entry))
    # A captured graph serves every context that its block tables have room for, here up to 128K.
    entry = Entry("decode", "8 x 4K, graph for 128K", _decoding(bench.sizes, 8, 4 * K), MICROSECONDS, None)
    bench.attempt(f"decode {entry.case}", partial(_measure, bench, entry, room=32))


def measure_prefill(bench: Bench) -> None:
    """Measure prompts. The floor is the time for the arithmetic that the causal mask leaves."""
    for entry in prefill_entries(bench.sizes):
        bench.attempt(f"prefill {entry.case}", partial(_measure, bench, entry))


def measure_cache_forms(bench: Bench) -> None:
    """Measure decoding with sequences of different lengths and with FP8 caches."""
    bench.attempt("decode ragged", partial(_measure_share, bench, ragged_entry(bench.sizes), fp8=False))
    for entry in fp8_entries(bench.sizes):
        bench.attempt(f"decode {entry.case}", partial(_measure_share, bench, entry, fp8=True))


def measure_flex(bench: Bench) -> None:
    """Measure flex_attention as a peer of the other sections' rows. It is slow, because it compiles each shape."""
    for entry in (*prefill_entries(bench.sizes), *decode_entries(bench.sizes)):
        row = bench.report.row(entry.section, entry.case)
        if row is not None:
            bench.peer(row, "flex", partial(flex, bench, entry.lengths))


def _decoding(sizes: Sizes, count: int, context: int) -> Lengths:
    return [(sizes.tokens(context), 1)] * sizes.sequences(count)


def _prompts(sizes: Sizes, count: int, tokens: int) -> Lengths:
    return [(sizes.tokens(tokens), sizes.tokens(tokens))] * sizes.sequences(count)


def _measure(bench: Bench, entry: Entry, room: int = 1) -> None:
    """Measure an entry and its peers, in a graph captured for contexts `room` times as long."""
    case = make_case(bench, entry.lengths)
    layout = replace(case.layout, max_context=case.layout.max_context * room)
    _add(bench, entry, replace(case, layout=layout))


def _measure_share(bench: Bench, entry: Entry, *, fp8: bool) -> None:
    """Measure a case whose target is SHARE of its floor; small FP8 cases have no target."""
    case = make_case(bench, entry.lengths, FP8 if fp8 else None)
    moved = case.bytes
    target = MICROSECONDS.show(bench.rates.moving(moved) / SHARE, moved)
    _add(bench, entry._replace(target=None if fp8 and moved < LARGE else target), case)


def work_and_floor(bench: Bench, entry: Entry, case: Case) -> tuple[float, float]:
    """The bytes to move or the operations to do of a case, and the seconds that they take at least."""
    if entry.section == "decode":
        return case.bytes, bench.rates.moving(case.bytes)
    return case.shape.operations, bench.rates.computing(case.shape.operations)


def _add(bench: Bench, entry: Entry, case: Case) -> None:
    work, floor = work_and_floor(bench, entry, case)
    seconds = bench.timer.cold(partial(bench.backend.attend, case.q, case.cache, case.layout, case.options))
    row = Row(entry.section, entry.case, entry.unit, seconds, floor, work, entry.target)
    bench.report.add(row)
    for name, peer in peers(case).items():
        bench.peer(row, name, partial(peer, bench, case))
