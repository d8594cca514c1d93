"""The inner loops of attention in LLVM instructions: keys and values become float32, products, and the softmax.

They work on a tile: `KEYS` neighbouring keys of a sequence, and some rows, each of which is the query of one token and
head. The walk over sequences and tiles stands in `attention.py`.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu import vectors as v
from kernels.cpu.attention_memory import KEYS, LANES
from kernels.cpu.storage import widen
from kernels.cpu.target import dot_path

ROWS_AT_ONCE = (6, 4, 3, 2, 1)
"""Numbers of rows whose sums fit into registers together."""
VECTORS_AT_ONCE = (4, 1) if dot_path() == "avx512-vnni" else (2, 1)
"""Numbers of vectors of a row's sums in registers together."""


@intrinsic(prefer_literal=True)
def load_keys(_: Any, stored: Any, dim: Any, addresses: Any, out: Any) -> Any:
    """Write `LANES` keys [dim], at the addresses in an array, side by side to `out`, [dim, KEYS] float32.

    `stored` (the keys' form, see `storage.py`) and `dim` are compile-time constants.
    """
    form, size = stored.literal_value, dim.literal_value

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
        _emit_keys(builder, form, size, values[2], values[3])
        return context.get_dummy_value()

    return types.none(stored, dim, types.int64, types.int64), generate


def _emit_keys(builder: ir.IRBuilder, stored: int, dim: int, addresses: v.Value, out: v.Value) -> None:
    # Keys are transposed in words of 32 bits where these hold whole numbers, else number by number.
    packed = 4 // stored if dim % (4 // stored) == 0 else 1
    keys = [v.load(builder, v.I64, addresses, 8 * key) for key in range(LANES)]
    for first in range(0, dim // packed, LANES):
        count = min(LANES, dim // packed - first)
        words = [_words(builder, 8 * stored * packed, count, key, first * stored * packed) for key in keys]
        for index, column in enumerate(v.transpose(builder, words)[:count]):
            for part in range(packed):
                codes = builder.lshr(column, v.like(column, 8 * stored * part)) if part else column
                d = (first + index) * packed + part
                v.store(builder, widen(builder, stored, codes), out, 4 * KEYS * d)


def _words(builder: ir.IRBuilder, bits: int, count: int, address: v.Value, offset: int) -> v.Value:
    """`count` integers of up to 32 bits at an address, as i32 [LANES]; the lanes behind them are 0."""
    loaded = v.load(builder, v.vector(ir.IntType(bits), count), address, offset)
    wide = builder.zext(loaded, v.vector(v.I32, count)) if bits < 32 else loaded
    return wide if count == LANES else v.lanes_from(builder, wide, 0, LANES)


@intrinsic(prefer_literal=True)
def load_value(_: Any, stored: Any, dim: Any, address: Any, out: Any) -> Any:
    """Write one value [dim] at an address to `out`, float32, in whole vectors, the last of which is filled with 0.

    `stored` and `dim` are compile-time constants.
    """
    form, size = stored.literal_value, dim.literal_value

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
        for first in range(0, size, LANES):
            codes = _words(builder, 8 * form, min(LANES, size - first), values[2], first * form)
            v.store(builder, widen(builder, form, codes), values[3], 4 * first)
        return context.get_dummy_value()

    return types.none(stored, dim, types.int64, types.int64), generate


@intrinsic
def multiply_rows(
    _: Any,
    rows: Any,
    vectors: Any,
    depth: Any,
    a: Any,
    a_stride: Any,
    b: Any,
    b_stride: Any,
    c: Any,
    c_stride: Any,
    shrinks: Any,
    started: Any,
) -> Any:
    """The product c = a b; if `started` is not 0, c = c * shrinks + a b, with one of the shrinks for each row.

    a is [rows, depth], b [depth, vectors * LANES] and c [rows, vectors * LANES], all float32 at addresses, with
    strides of rows in bytes. `rows` is one of `ROWS_AT_ONCE`, `vectors` one of `VECTORS_AT_ONCE`.
    """

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
        for height in ROWS_AT_ONCE:
            for width in VECTORS_AT_ONCE:
                fits = builder.and_(
                    builder.icmp_signed("==", values[0], ir.Constant(v.I64, height)),
                    builder.icmp_signed("==", values[1], ir.Constant(v.I64, width)),
                )
                with builder.if_then(fits):
                    _emit_product(builder, height, width, values[2:])
        return context.get_dummy_value()

    return types.none(*[types.int64] * 11), generate


def _emit_product(builder: ir.IRBuilder, rows: int, vectors: int, arguments: Sequence[v.Value]) -> None:
    depth, a, a_stride, b, b_stride, c, c_stride, shrinks, started = arguments
    kind = v.vector(v.F32, LANES)
    a_rows, c_rows = (
        [builder.add(base, builder.mul(stride, ir.Constant(base.type, row))) for row in range(rows)]
        for base, stride in ((a, a_stride), (c, c_stride))
    )
    initial = _begin_sums(builder, vectors, c_rows, shrinks, started)

    def body(k: v.Value, sums: list[v.Value]) -> list[v.Value]:
        at = builder.add(b, builder.mul(k, b_stride))
        others = [v.load(builder, kind, at, 4 * LANES * i) for i in range(vectors)]
        offset = builder.mul(k, ir.Constant(k.type, 4))
        factors = [v.splat(builder, v.load(builder, v.F32, builder.add(row, offset)), LANES) for row in a_rows]
        return [v.fma(builder, factors[n // vectors], others[n % vectors], total) for n, total in enumerate(sums)]

    for n, total in enumerate(v.repeat(builder, depth, initial, body)):
        v.store(builder, total, c_rows[n // vectors], 4 * LANES * (n % vectors))


def _begin_sums(
    builder: ir.IRBuilder, vectors: int, rows: Sequence[v.Value], shrinks: v.Value, started: v.Value
) -> list[v.Value]:
    """The sums so far of each row, at an address, times the row's shrink; or 0 if `started` is 0."""
    kind = v.vector(v.F32, LANES)
    before = builder.block
    shrunk = []
    with builder.if_then(builder.icmp_signed("!=", started, ir.Constant(started.type, 0))):
        inside = builder.block
        for row, at in enumerate(rows):
            shrink = v.splat(builder, v.load(builder, v.F32, shrinks, 4 * row), LANES)
            shrunk += [builder.fmul(v.load(builder, kind, at, 4 * LANES * i), shrink) for i in range(vectors)]
    sums = [builder.phi(kind) for _ in shrunk]
    for total, value in zip(sums, shrunk, strict=True):
        total.add_incoming(v.like(value, 0), before)
        total.add_incoming(value, inside)
    return sums


@intrinsic(prefer_literal=True)
def find_peak(
    _: Any,
    plain: Any,
    scores: Any,
    vectors: Any,
    low: Any,
    high: Any,
    before: Any,
    cap: Any,
    slope: Any,
    distance: Any,
) -> Any:
    """Hide a row's scores of keys below `low` and from `high` on; returns the largest of the others and `before`.

    Scores are [vectors * LANES] float32 at an address, where the changed ones are written; hidden ones become -inf.

    Unless `plain`, a compile-time constant, each score becomes cap * tanh(score / cap) first if cap is not 0, and
    slope * (key - distance) is added to it.
    """
    simple = bool(plain.literal_value)

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
        return _emit_peak(builder, simple, values[1:])

    number = types.float32
    return number(plain, *[types.int64] * 4, number, number, number, types.int64), generate


def _emit_peak(builder: ir.IRBuilder, plain: bool, arguments: Sequence[v.Value]) -> v.Value:
    scores, vectors, low, high, before, cap, slope, distance = arguments
    bounds = [v.splat(builder, builder.trunc(bound, v.I32), LANES) for bound in (low, high)]
    biases = v.splat(builder, slope, LANES), v.splat(builder, builder.trunc(distance, v.I32), LANES)

    def change(index: v.Value, _: list[v.Value]) -> list[v.Value]:
        values, place = _vector(builder, scores, index)
        v.store(builder, capped_and_biased(builder, values, _keys(builder, index), cap, *biases), place)
        return []

    def hide(index: v.Value, _: list[v.Value]) -> list[v.Value]:
        values, place = _vector(builder, scores, index)
        v.store(builder, hidden(builder, values, _keys(builder, index), *bounds), place)
        return []

    def compare(index: v.Value, peaks: list[v.Value]) -> list[v.Value]:
        return [v.larger(builder, _vector(builder, scores, index)[0], peaks[0])]

    if not plain:
        v.repeat(builder, vectors, [], change)
    begins = builder.icmp_signed(">", low, ir.Constant(low.type, 0))
    ends = builder.icmp_signed("<", high, builder.mul(vectors, ir.Constant(vectors.type, LANES)))
    with builder.if_then(builder.or_(begins, ends)):
        v.repeat(builder, vectors, [], hide)
    [found] = v.repeat(builder, vectors, [v.splat(builder, before, LANES)], compare)
    return v.across(builder, lambda a, b: v.larger(builder, a, b), found)


@intrinsic
def take_exp(_: Any, numbers: Any, vectors: Any, peak: Any) -> Any:
    """Replace float32 numbers [vectors * LANES], at an address, by e^(number - peak); returns their sum."""

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
        address, count, highest = values

        def replace(index: v.Value, sums: list[v.Value]) -> list[v.Value]:
            number, place = _vector(builder, address, index)
            grown = v.exp(builder, builder.fsub(number, v.splat(builder, highest, LANES)))
            v.store(builder, grown, place)
            return [builder.fadd(sums[0], grown)]

        [total] = v.repeat(builder, count, [v.filled(v.F32, LANES, 0)], replace)
        return v.across(builder, builder.fadd, total)

    return types.float32(types.int64, types.int64, types.float32), generate


def _vector(builder: ir.IRBuilder, numbers: v.Value, index: v.Value) -> tuple[v.Value, v.Value]:
    """One of the float32 vectors at an address, and its own address."""
    place = builder.add(numbers, builder.mul(index, ir.Constant(index.type, 4 * LANES)))
    return v.load(builder, v.vector(v.F32, LANES), place), place


def _keys(builder: ir.IRBuilder, index: v.Value) -> v.Value:
    """The keys of a vector of scores, i32 [LANES], counted from the tile's first."""
    first = builder.mul(builder.trunc(index, v.I32), ir.Constant(v.I32, LANES))
    return builder.add(v.splat(builder, first, LANES), ir.Constant(v.vector(v.I32, LANES), list(range(LANES))))


def hidden(builder: ir.IRBuilder, scores: v.Value, keys: v.Value, low: v.Value, high: v.Value) -> v.Value:
    """Scores, with -inf for keys below `low` and from `high` on; all but the scores are i32 [LANES]."""
    visible = builder.and_(builder.icmp_signed(">=", keys, low), builder.icmp_signed("<", keys, high))
    return builder.select(visible, scores, v.like(scores, float("-inf")))


def capped_and_biased(
    builder: ir.IRBuilder, scores: v.Value, keys: v.Value, cap: v.Value, slope: v.Value, distance: v.Value
) -> v.Value:
    """Scores capped, cap * tanh(score / cap), if cap is not 0, plus slope * (key - distance).

    `cap` is a scalar; keys and distances are i32 [LANES], slopes float32 [LANES].
    """
    limit = v.splat(builder, cap, scores.type.count)
    capped = builder.fmul(limit, v.tanh(builder, builder.fdiv(scores, limit)))
    scores = builder.select(builder.fcmp_ordered("==", limit, v.like(limit, 0)), scores, capped)
    return v.fma(builder, slope, builder.sitofp(builder.sub(keys, distance), scores.type), scores)
