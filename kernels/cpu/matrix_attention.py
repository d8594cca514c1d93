"""The products of attention on the matrix unit of Intel CPUs (AMX), over a bfloat16 cache.

Queries and weights are rounded to bfloat16, and the unit adds in float32. Keys are read as they lie in the cache: their
products with queries come out as [keys, rows], of which `matrix_softmax.py` makes weights. Values lie in the cache in
pairs, as the unit wants them (`attention_memory.serves`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kernels.cpu import matrix_unit as unit
from kernels.cpu import vectors as v
from kernels.cpu.arguments import AttendArguments
from kernels.cpu.attention_memory import DEPTH, KEYS, PARTS, PRODUCT_BYTES, STEPS
from kernels.cpu.attention_state import padded_rows
from kernels.cpu.cache_forms import BFLOAT16
from kernels.cpu.instructions import instruction, words
from kernels.cpu.matrix_softmax import LANES, NARROW
from kernels.cpu.target import CONFIGURATION_BYTES, REGISTER_ROWS, matrix_unit

KEY_SUMS, QUERIES, CACHED, WEIGHTS, VALUE_SUMS = (0, 1), 2, (3, 4), 5, (6, 7)
"""Registers: scores float32 [REGISTER_ROWS keys, columns]; queries in pairs, [DEPTH / 2, columns, 2]; keys
[REGISTER_ROWS, DEPTH], and later values in pairs, [DEPTH / 2, LANES, 2]; weights [rows, DEPTH], and sums float32 [rows,
LANES]. There are LANES columns, or NARROW ones: one for each row."""


def _emit_configure(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    place, columns, rows = values
    full, height = ir.Constant(v.I64, 64), ir.Constant(v.I64, REGISTER_ROWS)
    narrow = builder.mul(columns, ir.Constant(v.I64, 4))
    unit.configure(builder, place, [(narrow, height)] * 3 + [(full, height)] * 2 + [(full, rows)] * 3)
    return ir.Constant(v.I64, 0)


configure = instruction(types.int64, [types.int64] * 3, _emit_configure)
"""Give the calling thread's registers their shapes, for up to 16 rows at once: (scratch, columns, rows) -> 0."""


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
    """Round the queries [LANES, dim] float32 of some rows, and arrange them for a product with keys.

    Written to `out`: [dim / DEPTH, DEPTH / 2, LANES, 2] bfloat16. `dim` is a compile-time constant.
    """
    return _with_dim(partial(_emit_queries, v.transpose, LANES), 2)(dim)


@intrinsic(prefer_literal=True)
def pair_few_queries(_: Any, dim: Any, queries: Any, out: Any) -> Any:
    """`pair_queries` for NARROW rows: `out` is [dim / DEPTH, DEPTH / 2, NARROW, 2] bfloat16."""
    return _with_dim(partial(_emit_queries, _interleave, NARROW), 2)(dim)


def _emit_queries(
    turn: Callable[[ir.IRBuilder, Sequence[v.Value]], list[v.Value]],
    rows: int,
    builder: ir.IRBuilder,
    dim: int,
    arguments: Sequence[v.Value],
) -> None:
    queries, out = arguments
    for step in range(dim // DEPTH):
        rounded = [
            v.to_bfloat16(builder, v.load(builder, v.vector(v.F32, DEPTH), queries, 4 * (row * dim + step * DEPTH)))
            for row in range(rows)
        ]
        turned = turn(builder, [builder.bitcast(numbers, v.vector(v.I32, LANES)) for numbers in rounded])
        for index, numbers in enumerate(turned):
            v.store(builder, numbers, out, 64 * (rows * step + index))


def _interleave(builder: ir.IRBuilder, rows: Sequence[v.Value]) -> list[v.Value]:
    """Vectors with the first numbers of all four rows, then their second ones, and so on."""
    pairs = [v.interleave(builder, a, b) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    wide = v.vector(v.I64, LANES // 2)
    return [
        quad
        for a, b in zip(*pairs, strict=True)
        for quad in v.interleave(builder, builder.bitcast(a, wide), builder.bitcast(b, wide))
    ]


@intrinsic(prefer_literal=True)
def score_keys(_: Any, dim: Any, columns: Any, queries: Any, parts: Any, count: Any, stride: Any, products: Any) -> Any:
    """Products of some rows' queries, from `pair_queries` or `pair_few_queries`, with the keys of a tile.

    `parts` is the address of so many addresses, an even number, each of `REGISTER_ROWS` keys that lie `stride` bytes
    apart. Products are [count, REGISTER_ROWS, columns] float32. `dim` is a compile-time constant.
    """
    return _with_dim(_emit_scores, 6)(dim)


def _emit_scores(builder: ir.IRBuilder, dim: int, arguments: Sequence[v.Value]) -> None:
    columns, queries, parts, count, stride, products = arguments
    row = builder.mul(columns, ir.Constant(v.I64, 4))
    size = builder.mul(row, ir.Constant(v.I64, REGISTER_ROWS))

    def score(index: v.Value, _: list[v.Value]) -> list[v.Value]:
        first = builder.mul(index, ir.Constant(v.I64, len(KEY_SUMS)))
        place = builder.add(parts, builder.mul(first, ir.Constant(v.I64, 8)))
        keys = [v.load(builder, v.I64, place, 8 * number) for number in range(len(KEY_SUMS))]
        for sums in KEY_SUMS:
            unit.clear(builder, sums)
        for step in range(dim // DEPTH):
            unit.load(builder, QUERIES, builder.add(queries, builder.mul(size, ir.Constant(v.I64, step))), row)
            for sums, cached, key in zip(KEY_SUMS, CACHED, keys, strict=True):
                unit.load(builder, cached, v.at(builder, key, 2 * DEPTH * step), stride)
                unit.multiply(builder, "tdpbf16ps", sums, cached, QUERIES)
        out = builder.add(products, builder.mul(first, size))
        for number, sums in enumerate(KEY_SUMS):
            unit.store(builder, sums, out if number == 0 else builder.add(out, size), row)
        return []

    v.repeat(builder, builder.sdiv(count, ir.Constant(v.I64, len(KEY_SUMS))), [], score)


@intrinsic(prefer_literal=True)
def copy_values(_: Any, dim: Any, present: Any, values: Any, stride: Any, out: Any) -> Any:
    """Copy the values [DEPTH / 2, dim, 2] bfloat16 of a part to `out`, with zeros for keys that are not `present`.

    Rows of `values` lie `stride` bytes apart. `dim` is a compile-time constant.
    """
    return _with_dim(_emit_copy, 4)(dim)


def _emit_copy(builder: ir.IRBuilder, dim: int, arguments: Sequence[v.Value]) -> None:
    present, values, stride, out = arguments

    def copy(pair: v.Value, _: list[v.Value]) -> list[v.Value]:
        before = builder.sub(present, builder.mul(pair, ir.Constant(v.I64, 2)))
        masks = [builder.icmp_signed(">", before, ir.Constant(v.I64, key)) for key in (0, 1)]
        bits = [
            builder.select(mask, ir.Constant(v.I32, 0xFFFF << 16 * key), ir.Constant(v.I32, 0))
            for key, mask in enumerate(masks)
        ]
        kept = v.splat(builder, builder.or_(*bits), LANES)
        source = builder.add(values, builder.mul(pair, stride))
        target = builder.add(out, builder.mul(pair, ir.Constant(v.I64, 4 * dim)))
        for d in range(0, dim, LANES):
            v.store(builder, builder.and_(v.load(builder, kept.type, source, 4 * d), kept), target, 4 * d)
        return []

    v.repeat(builder, ir.Constant(v.I64, DEPTH // 2), [], copy)


@intrinsic(prefer_literal=True)
def add_values(_: Any, dim: Any, steps: Any, weights: Any, parts: Any, strides: Any, sums: Any) -> Any:
    """Add the products of rows' weights with so many steps of a tile's values to sums [rows, dim] float32.

    Weights are [rows, KEYS] bfloat16. `parts` and `strides` are the addresses of a word for each step: the address of
    its values [DEPTH / 2, dim, 2] bfloat16, and the bytes between their rows. The number of rows is that of
    `configure`; `dim` is a compile-time constant.
    """
    return _with_dim(_emit_values, 5)(dim)


def _emit_values(builder: ir.IRBuilder, dim: int, arguments: Sequence[v.Value]) -> None:
    steps, weights, parts, strides, sums = arguments
    weight_stride, sum_stride = ir.Constant(v.I64, 2 * KEYS), ir.Constant(v.I64, 4 * dim)
    for d in range(0, dim, LANES * len(VALUE_SUMS)):
        places = [v.at(builder, sums, 4 * (d + LANES * index)) for index in range(len(VALUE_SUMS))]
        for register, place in zip(VALUE_SUMS, places, strict=True):
            unit.load(builder, register, place, sum_stride)

        def add(step: v.Value, _: list[v.Value], d: int = d) -> list[v.Value]:
            word, offset = (builder.mul(step, ir.Constant(v.I64, size)) for size in (8, 2 * DEPTH))
            values = v.load(builder, v.I64, builder.add(parts, word))
            stride = v.load(builder, v.I64, builder.add(strides, word))
            unit.load(builder, WEIGHTS, builder.add(weights, offset), weight_stride)
            for index, (register, cached) in enumerate(zip(VALUE_SUMS, CACHED, strict=True)):
                unit.load(builder, cached, v.at(builder, values, 4 * (d + LANES * index)), stride)
                unit.multiply(builder, "tdpbf16ps", register, WEIGHTS, cached)
            return []

        v.repeat(builder, steps, [], add)
        for register, place in zip(VALUE_SUMS, places, strict=True):
            unit.store(builder, register, place, sum_stride)


@njit(inline="always")
def begin_unit(rows: int, own: int) -> None:
    """Prepare the unit for tiles of so many rows, of which the memory at `own` belongs to the first."""
    configure(own, columns_of(rows), min(rows, REGISTER_ROWS))


@njit(inline="always")
def begin_tile(dim: int, rows: int, queries: int, own: int) -> None:
    """Prepare the memory at `own` for a tile of rows with `queries` [rows, dim] float32."""
    paired = own + 2 * CONFIGURATION_BYTES
    if rows <= NARROW:
        pair_few_queries(dim, queries, paired)
    else:
        for row in range(0, rows, LANES):
            pair_queries(dim, queries + 4 * dim * row, paired + 2 * dim * row)


@njit(inline="always")
def columns_of(rows: int) -> int:
    """The number of columns for a tile of rows."""
    return NARROW if rows <= NARROW else LANES


@njit(inline="always")
def products_of(dim: int, rows: int, own: int) -> int:
    """The address of a tile's scores, PRODUCT_BYTES a row: [keys, columns] float32 for each REGISTER_ROWS rows."""
    return own + 2 * CONFIGURATION_BYTES + 2 * padded_rows(rows) * dim


@njit(inline="always")
def weights_of(dim: int, rows: int, own: int) -> int:
    """The address of a tile's weights [rows, KEYS] bfloat16."""
    return products_of(dim, rows, own) + PRODUCT_BYTES * padded_rows(rows)


@njit(inline="always")
def score_tile(dim: int, rows: int, steps: int, parts: int, stride: int, own: int) -> None:
    """Scores of a tile's keys, in so many steps of DEPTH of them.

    `parts` is the address of the addresses of PARTS parts of the keys, which lie `stride` bytes apart.
    """
    queries, products = own + 2 * CONFIGURATION_BYTES, products_of(dim, rows, own)
    for row in range(0, rows, REGISTER_ROWS):
        # fmt: off
        score_keys(
            dim, columns_of(rows), queries + 2 * dim * row, parts, steps * (DEPTH // REGISTER_ROWS), stride,
            products + PRODUCT_BYTES * row,
        )
        # fmt: on


@njit(inline="always")
def add_tile(dim: int, rows: int, present: int, parts: int, stride: int, own: int, sums: int) -> None:
    """Add the values of a tile's keys, `present` of them, to sums [rows, dim], by the tile's weights.

    `parts` is the address of the addresses of STEPS parts of the values, whose pairs lie `stride` bytes apart.
    """
    weights = weights_of(dim, rows, own)
    rest = weights + 2 * KEYS * padded_rows(rows)
    steps = (present + DEPTH - 1) // DEPTH
    places, strides = words(own + CONFIGURATION_BYTES, STEPS), words(own + CONFIGURATION_BYTES + 8 * STEPS, STEPS)
    for step in range(steps):
        places[step], strides[step] = words(parts, STEPS)[step], stride
    if present < steps * DEPTH:
        # Absent values are multiplied by 0, and any number may stand in their place.
        copy_values(dim, present - (steps - 1) * DEPTH, places[steps - 1], stride, rest)
        places[steps - 1], strides[steps - 1] = rest, 4 * dim
    place = own + CONFIGURATION_BYTES
    for row in range(0, rows, REGISTER_ROWS):
        add_values(dim, steps, weights + 2 * KEYS * row, place, place + 8 * STEPS, sums + 4 * dim * row)


@njit(inline="always")
def locate_parts(
    dim: int, block: int, args: AttendArguments, table: Any, base: int, end: int, kv_head: int, places: int
) -> None:
    """Write the addresses of a tile's parts to `places`, [PARTS] int64 for keys and [STEPS] int64 for values.

    Behind the sequence's end, the first part is repeated.
    """
    keys, values = words(places, PARTS), words(places + 8 * PARTS, STEPS)
    for part in range(PARTS):
        at = base + part * REGISTER_ROWS
        if at >= end:
            at = base
        slot = table[at // block] * block + at % block
        keys[part] = args.keys + (slot * args.kv_heads + kv_head) * dim * BFLOAT16
        if part % 2 == 0:
            values[part // 2] = args.values + (slot * args.kv_heads + 2 * kv_head) * dim * BFLOAT16
