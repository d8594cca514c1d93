"""The products of attention on the matrix unit of Intel CPUs (AMX), over a bfloat16 cache.

Queries and weights are float32. Each is split into the sum of two bfloat16 numbers, an upper and a lower part, with a
relative error below 2^-16; the unit multiplies both parts, and adds in float32. Keys are read as they lie in the cache:
their products with queries come out as [keys, rows], and are turned. Values are paired first, as the unit wants them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kernels.cpu import matrix_unit as unit
from kernels.cpu import vectors as v
from kernels.cpu.attention_memory import DEPTH, KEYS, PARTS, PRODUCT_BYTES, ROWS_TOGETHER
from kernels.cpu.instructions import floats, instruction, words
from kernels.cpu.target import CONFIGURATION_BYTES, REGISTER_BYTES, REGISTER_ROWS, matrix_unit

LANES = 16
"""Float32 numbers in a vector, and in a row of a register of sums."""
KEY_SUMS, QUERIES, CACHED, UPPER, LOWER, VALUE_SUMS = (0, 1), 2, 3, 4, 5, (6, 7)
"""Registers: sums float32 [keys, 2 ROWS_TOGETHER]; paired queries, and later paired values, [DEPTH / 2, 2 LANES];
keys [REGISTER_ROWS, DEPTH]; weights' parts [rows, DEPTH], and sums float32 [rows, LANES]."""


def _emit_configure(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    place, rows = values
    full, height = ir.Constant(v.I64, 64), ir.Constant(v.I64, REGISTER_ROWS)
    unit.configure(builder, place, [(full, height)] * UPPER + [(full, rows)] * 4)
    return ir.Constant(v.I64, 0)


configure = instruction(types.int64, [types.int64, types.int64], _emit_configure)
"""Give the calling thread's registers their shapes, for up to 16 rows of weights at once: (scratch, rows) -> 0."""


def _with_dim(emit: Callable[[ir.IRBuilder, int, Sequence[v.Value]], None], arguments: int) -> Any:
    """A function for kernels of a compile-time constant `dim` and so many int64, which compiles to what `emit` emits.

    Heads that the unit does not serve compile to nothing.
    """

    def typed(dim: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
            if matrix_unit() and dim.literal_value % DEPTH == 0:
                emit(builder, dim.literal_value, values[1:])
            return context.get_dummy_value()

        return types.none(dim, *[types.int64] * arguments), generate

    return typed


@intrinsic(prefer_literal=True)
def pair_queries(_: Any, dim: Any, queries: Any, out: Any) -> Any:
    """Split the queries [ROWS_TOGETHER, dim] float32 of some rows, and arrange them for a product with keys.

    Written to `out`: [dim / DEPTH, DEPTH / 2, 2 ROWS_TOGETHER, 2] bfloat16. `dim` is a compile-time constant.
    """
    return _with_dim(_emit_queries, 2)(dim)


def _emit_queries(builder: ir.IRBuilder, dim: int, arguments: Sequence[v.Value]) -> None:
    queries, out = arguments
    for step in range(dim // DEPTH):
        parts = [
            v.split(builder, v.load(builder, v.vector(v.F32, DEPTH), queries, 4 * (row * dim + step * DEPTH)))
            for row in range(ROWS_TOGETHER)
        ]
        columns = [builder.bitcast(part, v.vector(v.I32, LANES)) for half in zip(*parts, strict=True) for part in half]
        for index, row in enumerate(v.transpose(builder, columns)):
            v.store(builder, row, out, step * REGISTER_BYTES + 64 * index)


@intrinsic(prefer_literal=True)
def score_keys(_: Any, dim: Any, queries: Any, parts: Any, stride: Any, products: Any) -> Any:
    """Products of `ROWS_TOGETHER` rows' queries, from `pair_queries`, with the keys of a tile.

    `parts` is the address of PARTS addresses, each of `REGISTER_ROWS` keys that lie `stride` bytes apart. Products are
    [PARTS, REGISTER_ROWS, 2 ROWS_TOGETHER] float32. `dim` is a compile-time constant.
    """
    return _with_dim(_emit_scores, 4)(dim)


def _emit_scores(builder: ir.IRBuilder, dim: int, arguments: Sequence[v.Value]) -> None:
    queries, parts, stride, products = arguments
    row = ir.Constant(v.I64, 64)
    for first in range(0, PARTS, len(KEY_SUMS)):
        for sums in KEY_SUMS:
            unit.clear(builder, sums)
        for step in range(dim // DEPTH):
            unit.load(builder, QUERIES, v.at(builder, queries, step * REGISTER_BYTES), row)
            for index, sums in enumerate(KEY_SUMS):
                keys = v.load(builder, v.I64, parts, 8 * (first + index))
                unit.load(builder, CACHED, v.at(builder, keys, 2 * DEPTH * step), stride)
                unit.multiply(builder, "tdpbf16ps", sums, CACHED, QUERIES)
        for index, sums in enumerate(KEY_SUMS):
            unit.store(builder, sums, v.at(builder, products, (first + index) * REGISTER_BYTES), row)


@intrinsic
def turn_scores(_: Any, products: Any, scores: Any) -> Any:
    """Add the products of upper and lower parts, from `score_keys`, to scores, [ROWS_TOGETHER, KEYS] float32."""

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
        kind = v.vector(v.F32, LANES)
        for part in range(PARTS):
            place = part * REGISTER_BYTES
            keys = [v.load(builder, kind, values[0], place + 64 * key) for key in range(REGISTER_ROWS)]
            columns = v.transpose(builder, keys)
            for row in range(ROWS_TOGETHER):
                score = builder.fadd(columns[row], columns[ROWS_TOGETHER + row])
                v.store(builder, score, values[1], 4 * (row * KEYS + part * REGISTER_ROWS))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def split_weights(_: Any, weights: Any, upper: Any, lower: Any) -> Any:
    """Split a row's weights [KEYS] float32 into `upper` and `lower` parts, [KEYS] bfloat16 each."""

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
        for first in range(0, KEYS, DEPTH):
            numbers = v.load(builder, v.vector(v.F32, DEPTH), values[0], 4 * first)
            for part, place in zip(v.split(builder, numbers), values[1:], strict=True):
                v.store(builder, part, place, 2 * first)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def pair_values(_: Any, dim: Any, first: Any, second: Any, out: Any) -> Any:
    """Write the values [dim] bfloat16 of two keys, at their addresses, number beside number to `out`, [dim, 2].

    `dim` is a compile-time constant.
    """
    return _with_dim(_emit_pairs, 3)(dim)


def _emit_pairs(builder: ir.IRBuilder, dim: int, arguments: Sequence[v.Value]) -> None:
    first, second, out = arguments
    kind = v.vector(v.I16, DEPTH)
    for d in range(0, dim, DEPTH):
        a, b = (v.load(builder, kind, place, 2 * d) for place in (first, second))
        for half in (0, 1):
            places = [lane + other * DEPTH for lane in range(16 * half, 16 * half + 16) for other in (0, 1)]
            pairs = builder.shuffle_vector(a, b, ir.Constant(v.vector(v.I32, DEPTH), places))
            v.store(builder, pairs, out, 4 * (d + 16 * half))


@intrinsic(prefer_literal=True)
def add_values(_: Any, dim: Any, upper: Any, lower: Any, values: Any, sums: Any) -> Any:
    """Add the products of rows' weights with a tile's values to sums [rows, dim] float32.

    `upper` and `lower` are the weights' parts, [rows, KEYS] bfloat16 each; values are [KEYS / 2, dim, 2] bfloat16. The
    number of rows is that of `configure`; `dim` is a compile-time constant.
    """
    return _with_dim(_emit_values, 4)(dim)


def _emit_values(builder: ir.IRBuilder, dim: int, arguments: Sequence[v.Value]) -> None:
    upper, lower, values, sums = arguments
    weight_stride, stride = ir.Constant(v.I64, 2 * KEYS), ir.Constant(v.I64, 4 * dim)
    for d in range(0, dim, LANES * len(VALUE_SUMS)):
        places = [v.at(builder, sums, 4 * (d + LANES * index)) for index in range(len(VALUE_SUMS))]
        for register, place in zip(VALUE_SUMS, places, strict=True):
            unit.load(builder, register, place, stride)
        for first in range(0, KEYS, DEPTH):
            unit.load(builder, UPPER, v.at(builder, upper, 2 * first), weight_stride)
            unit.load(builder, LOWER, v.at(builder, lower, 2 * first), weight_stride)
            for index, register in enumerate(VALUE_SUMS):
                paired = v.at(builder, values, 2 * first * dim + 4 * (d + LANES * index))
                unit.load(builder, QUERIES, paired, stride)
                unit.multiply(builder, "tdpbf16ps", register, UPPER, QUERIES)
                unit.multiply(builder, "tdpbf16ps", register, LOWER, QUERIES)
        for register, place in zip(VALUE_SUMS, places, strict=True):
            unit.store(builder, register, place, stride)


@njit(inline="always")
def begin_tile(dim: int, rows: int, queries: int, own: int) -> None:
    """Prepare the unit, and its memory at `own`, for a tile of rows with `queries` [rows, dim] float32."""
    configure(own, min(rows, REGISTER_ROWS))
    for row in range(0, rows, ROWS_TOGETHER):
        pair_queries(dim, queries + 4 * dim * row, own + 2 * CONFIGURATION_BYTES + 4 * dim * row)


@njit(inline="always")
def score_tile(dim: int, rows: int, present: int, keys: Any, stride: int, own: int, scores: int) -> None:
    """Scores [rows, KEYS] float32 of a tile's keys, `present` of them, at the addresses `keys` and `stride` apart."""
    padded = (rows + REGISTER_ROWS - 1) // REGISTER_ROWS * REGISTER_ROWS
    parts, queries = own + CONFIGURATION_BYTES, own + 2 * CONFIGURATION_BYTES
    products = queries + 4 * padded * dim
    for part in range(PARTS):
        # Absent keys are hidden later; those of another part are read in their place.
        words(parts, PARTS)[part] = keys[part * REGISTER_ROWS if part * REGISTER_ROWS < present else 0]
    for row in range(0, rows, ROWS_TOGETHER):
        score_keys(dim, queries + 4 * dim * row, parts, stride, products + PRODUCT_BYTES * row)
    for row in range(0, rows, ROWS_TOGETHER):
        turn_scores(products + PRODUCT_BYTES * row, scores + 4 * KEYS * row)


@njit(inline="always")
def add_tile(dim: int, rows: int, present: int, values: Any, own: int, weights: int, sums: int) -> None:
    """Add the values of a tile's keys, at the addresses `values`, to sums [rows, dim], by weights [rows, KEYS]."""
    padded = (rows + REGISTER_ROWS - 1) // REGISTER_ROWS * REGISTER_ROWS
    upper = own + 2 * CONFIGURATION_BYTES + padded * (4 * dim + PRODUCT_BYTES)
    lower = upper + 2 * KEYS * padded
    paired = lower + 2 * KEYS * padded
    zeros = paired + 2 * KEYS * dim
    for row in range(rows):
        split_weights(weights + 4 * KEYS * row, upper + 2 * KEYS * row, lower + 2 * KEYS * row)
    for d in range(dim // 2):
        floats(zeros, dim // 2)[d] = np.float32(0)
    for key in range(0, KEYS, 2):
        first: Any = values[key] if key < present else zeros
        second: Any = values[key + 1] if key + 1 < present else zeros
        pair_values(dim, first, second, paired + 4 * dim * (key // 2))
    for row in range(0, rows, REGISTER_ROWS):
        add_values(dim, upper + 2 * KEYS * row, lower + 2 * KEYS * row, paired, sums + 4 * dim * row)
