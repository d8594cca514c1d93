"""The online softmax of attention over scores as the matrix unit leaves them, in LLVM instructions.

Scores are [keys, columns]: each lane of a vector belongs to a row, so that peaks and masses need no sums across lanes.
The weights are turned when they have become pairs of bfloat16 numbers, half as many words as scores.

Source: Milakov and Gimelshein, arXiv 1805.02867.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu import vectors as v
from kernels.cpu.attention_memory import DEPTH, KEYS
from kernels.cpu.attention_tile import capped_and_biased, hidden
from kernels.cpu.target import matrix_unit

LANES = 16
"""Float32 numbers in a vector."""
NARROW = 4
"""Number of columns where rows are few: a vector then has so many rows of LANES / NARROW keys."""
SUMS = 4
"""Number of sums of a row's weights: of every fourth key from the first, the second, and so on.

It is the same for any number of columns, so that a row has the same bits whatever its batch.
"""

LOG2_E = 1.4426950408889634
POWER = 0.0018671417, 0.0090170056, 0.0557999307, 0.2401644453, 0.6931513122, 1.0
"""Coefficients, highest first, of the polynomial of degree 5 nearest to 2^x from 0 to 1 of those that are 1 at 0."""


class _Softmax(NamedTuple):
    """Addresses and numbers of a tile of scores, see `soften`."""

    scores: v.Value
    steps: v.Value
    base: v.Value
    hides: v.Value
    cap: v.Value
    bounds: v.Value
    state: v.Value
    stride: v.Value
    weights: v.Value


@intrinsic(prefer_literal=True)
def soften(
    _: Any,
    plain: Any,
    columns: Any,
    scores: Any,
    steps: Any,
    base: Any,
    hides: Any,
    cap: Any,
    bounds: Any,
    state: Any,
    stride: Any,
    weights: Any,
) -> Any:
    """Turn a tile's scores [steps * DEPTH, columns] float32 into weights [columns, KEYS] bfloat16, e^(score - peak).

    `base` is the position of the tile's first key. There are LANES or NARROW columns, each of a row. At addresses lie
    arrays with a number for each row, `stride` bytes apart: at `bounds` the first position that a row sees and the
    first that it no longer sees, int32, and ALiBi's slope, float32; at `state`, float32, its peak and mass, which grow,
    and its shrink, which becomes the factor of what was summed before. Keys are hidden only if `hides` is not 0.

    Unless `plain`, a compile-time constant, each score becomes cap * tanh(score / cap) first if cap is not 0, and
    slope * (key - query's position) is added to it.
    """
    simple = bool(plain.literal_value)

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
        if matrix_unit():
            for width in (NARROW, LANES):
                with builder.if_then(builder.icmp_signed("==", values[1], ir.Constant(v.I64, width))):
                    _emit(builder, simple, width, _Softmax(*values[2:]))
        return context.get_dummy_value()

    whole, number = types.int64, types.float32
    return types.none(plain, *[whole] * 5, number, *[whole] * 4), generate


def _emit(builder: ir.IRBuilder, plain: bool, columns: int, tile: _Softmax) -> None:
    many = LANES // columns
    vectors = builder.mul(tile.steps, ir.Constant(v.I64, DEPTH // many))
    scores = v.vector(v.F32, LANES)

    def place(index: v.Value) -> v.Value:
        return builder.add(tile.scores, builder.mul(index, ir.Constant(v.I64, 4 * LANES)))

    def of_rows(kind: ir.Type, base: v.Value, number: int) -> v.Value:
        return _spread(builder, v.load(builder, v.vector(kind, columns), _nth(builder, tile, base, number)))

    def replace(change: Callable[[v.Value, v.Value], v.Value]) -> None:
        def body(index: v.Value, _: list[v.Value]) -> list[v.Value]:
            first = builder.add(tile.base, builder.mul(index, ir.Constant(v.I64, many)))
            keys = v.splat(builder, builder.trunc(first, v.I32), LANES)
            own = ir.Constant(keys.type, [lane // columns for lane in range(LANES)])
            changed = change(v.load(builder, scores, place(index)), builder.add(keys, own))
            v.store(builder, changed, place(index))
            return []

        v.repeat(builder, vectors, [], body)

    low, high = (of_rows(v.I32, tile.bounds, number) for number in range(2))
    if not plain:
        slope, own = of_rows(v.F32, tile.bounds, 2), builder.sub(high, v.like(high, 1))
        replace(lambda score, keys: capped_and_biased(builder, score, keys, tile.cap, slope, own))
    with builder.if_then(builder.icmp_signed("!=", tile.hides, ir.Constant(v.I64, 0))):
        replace(lambda score, keys: hidden(builder, score, keys, low, high))

    peaks = _nth(builder, tile, tile.state, 0)
    before = v.load(builder, v.vector(v.F32, columns), peaks)
    peak = _find_peak(builder, columns, tile, vectors, before)
    v.store(builder, peak, peaks)
    shrink = _exp(builder, builder.fsub(before, peak))
    v.store(builder, shrink, _nth(builder, tile, tile.state, 2))
    total = _weigh(builder, columns, tile, _spread(builder, peak))
    masses = _nth(builder, tile, tile.state, 1)
    v.store(builder, v.fma(builder, v.load(builder, total.type, masses), shrink, total), masses)


def _nth(builder: ir.IRBuilder, tile: _Softmax, base: v.Value, number: int) -> v.Value:
    """The address of the rows' numbers in one of the arrays at `base`."""
    return builder.add(base, builder.mul(tile.stride, ir.Constant(v.I64, number)))


def _spread(builder: ir.IRBuilder, rows: v.Value) -> v.Value:
    """A number for each row, in the lanes of the row."""
    places = [lane % rows.type.count for lane in range(LANES)]
    return builder.shuffle_vector(rows, rows, ir.Constant(v.vector(v.I32, LANES), places))


def _gathered(
    builder: ir.IRBuilder, columns: int, combine: Callable[[v.Value, v.Value], v.Value], lanes: v.Value
) -> v.Value:
    """A number for each row, of those of its lanes."""
    while lanes.type.count > columns:
        half = lanes.type.count // 2
        lanes = combine(*[v.lanes_from(builder, lanes, first, half) for first in (0, half)])
    return lanes


def _find_peak(builder: ir.IRBuilder, columns: int, tile: _Softmax, vectors: v.Value, before: v.Value) -> v.Value:
    """The largest of each row's scores and its peak `before`."""
    size = 4 * LANES

    def compare(index: v.Value, peaks: list[v.Value]) -> list[v.Value]:
        at = builder.add(tile.scores, builder.mul(index, ir.Constant(v.I64, size * len(peaks))))
        loaded = [v.load(builder, peaks[0].type, at, size * number) for number in range(len(peaks))]
        return [v.larger(builder, score, peak) for score, peak in zip(loaded, peaks, strict=True)]

    start = [v.filled(v.F32, LANES, float("-inf"))] * 4
    a, b, c, d = v.repeat(builder, builder.udiv(vectors, ir.Constant(v.I64, len(start))), start, compare)
    found = v.larger(builder, v.larger(builder, a, b), v.larger(builder, c, d))
    return v.larger(builder, _gathered(builder, columns, lambda x, y: v.larger(builder, x, y), found), before)


def _weigh(builder: ir.IRBuilder, columns: int, tile: _Softmax, peak: v.Value) -> v.Value:
    """Write the weights of all keys; returns their sum for each row."""
    many = LANES // columns
    count = DEPTH // many

    def body(step: v.Value, before: list[v.Value]) -> list[v.Value]:
        sums = list(before)
        at = builder.add(tile.scores, builder.mul(step, ir.Constant(v.I64, 4 * DEPTH * columns)))
        out = builder.add(tile.weights, builder.mul(step, ir.Constant(v.I64, 2 * DEPTH)))
        rounded = []
        for number in range(0, count, 2):
            weights = []
            for index in (number, number + 1):
                score = v.load(builder, peak.type, at, 4 * LANES * index)
                weights.append(_exp(builder, builder.fsub(score, peak)))
                sums[index % len(sums)] = _added(builder, sums[index % len(sums)], weights[-1])
            rounded.append(v.to_bfloat16(builder, _joined(builder, *weights)))
        turned = _turned(builder, rounded) if columns == LANES else _separated(builder, rounded)
        for row, numbers in enumerate(turned):
            v.store(builder, numbers, out, 2 * KEYS * row)
        return sums

    sums = v.repeat(builder, tile.steps, [v.filled(v.F32, LANES, 0)] * (SUMS // many), body)
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [_added(builder, a, b) for a, b in zip(sums[:half], sums[half:], strict=True)]
    return _gathered(builder, columns, lambda a, b: _added(builder, a, b), sums[0])


def _added(builder: ir.IRBuilder, a: v.Value, b: v.Value) -> v.Value:
    """The sum a + b, which LLVM may not reorder."""
    return v.rounded(builder, builder.fadd(a, b))


def _joined(builder: ir.IRBuilder, a: v.Value, b: v.Value) -> v.Value:
    """The lanes of a, and then those of b."""
    lanes = a.type.count
    return builder.shuffle_vector(a, b, ir.Constant(v.vector(v.I32, 2 * lanes), list(range(2 * lanes))))


def _turned(builder: ir.IRBuilder, rounded: Sequence[v.Value]) -> list[v.Value]:
    """Rows [LANES] of weights i16 [DEPTH], from vectors of those of all rows for two keys."""
    places = [lane // 2 + lane % 2 * LANES for lane in range(2 * LANES)]
    pairs = [builder.shuffle_vector(keys, keys, ir.Constant(v.vector(v.I32, 2 * LANES), places)) for keys in rounded]
    return v.transpose(builder, [builder.bitcast(pair, v.vector(v.I32, LANES)) for pair in pairs])


def _separated(builder: ir.IRBuilder, rounded: Sequence[v.Value]) -> list[v.Value]:
    """Rows [NARROW] of weights i16 [DEPTH], from vectors of those of all rows for eight keys."""
    halves = [v.separate(builder, a, b) for a, b in zip(rounded[::2], rounded[1::2], strict=True)]
    even, odd = (v.separate(builder, *part) for part in zip(*halves, strict=True))
    return [even[0], odd[0], even[1], odd[1]]


def _exp(builder: ir.IRBuilder, x: v.Value) -> v.Value:
    """e^x of float32 numbers up to 0, with a relative error of 2e-7 + 6e-8 |x|; NaN for NaN.

    For x below -87.3 it is 2^-126, the least normal number, since smaller ones would take the CPU a hundred times as
    long. It changes no sum with e^0, which is among the weights of every row.
    """
    power = v.larger(builder, v.like(x, -126), builder.fmul(x, v.like(x, LOG2_E)))
    return v.times_power(builder, _power_of_fraction(builder, v.fraction(builder, power)), power)


def _power_of_fraction(builder: ir.IRBuilder, x: v.Value) -> v.Value:
    """2^x of float32 numbers from 0 to 1, with a relative error of 8e-8 before it is rounded, and 1 for 0."""
    result = v.like(x, POWER[0])
    for coefficient in POWER[1:]:
        result = v.fma(builder, result, x, v.like(x, coefficient))
    return result
