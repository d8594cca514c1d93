"""The inner loop of a matrix product for many tokens, on the matrix unit of Intel CPUs (AMX).

The unit multiplies two-dimensional registers ("tiles") of small integers. Its sums are exact, and floats are added in
the order of `tile.py`, so that a token's outputs have the same bits there and here.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu import vectors as v
from kernels.cpu.instructions import instruction
from kernels.cpu.panels import LANES, Format
from kernels.cpu.target import matrix_unit
from kernels.cpu.tile import LOW_BITS, SUMS_BYTES, add_products, byte_pairs, nibble_quads

TOKENS = 16
"""Number of tokens in a tile, one for each row of a register."""
MOST_ROWS = 512
"""Limit of tokens that are multiplied with a panel together."""
BLOCK = 8
"""Number of groups that go through each stage of the work together.

A register cannot be loaded from what has just been stored, nor numbers from a register that has just been stored: both
wait until the store has reached the cache. By the time a stage reads a group, the stage before is some groups ahead.
"""
CONFIGURATION_BYTES = 64
REGISTER_BYTES = 64 * TOKENS
PRODUCTS = CONFIGURATION_BYTES + BLOCK * REGISTER_BYTES
TOTALS = PRODUCTS + BLOCK * 2 * REGISTER_BYTES
"""Place of the totals in scratch memory: [tiles, TOKENS, LANES] float32.

Before them lie the registers' configuration and, for each group of a block, its weights and two registers of sums.
"""

WEIGHTS, INPUTS, UPPER, LOWER = range(4)
"""Registers: weights u8 or i8 [rows, 4 LANES], activations' codes i8 [TOKENS, 4 rows], and sums i32 [TOKENS, LANES].

Weights of 4 bits are there twice, multiplied by 2^4 for the upper parts of codes and as they are for the lower parts,
and UPPER has the sums of both. Weights of 8 bits are multiplied with one part after the other, whose sums stand apart.
"""


def _emit_configure(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    place, inputs = values
    v.store(builder, v.filled(v.I8, CONFIGURATION_BYTES, 0), place)
    v.store(builder, ir.Constant(v.I8, 1), place)
    columns = builder.trunc(inputs, v.I16)
    rows = builder.trunc(builder.lshr(inputs, ir.Constant(inputs.type, 2)), v.I8)
    tokens, full = ir.Constant(v.I8, TOKENS), ir.Constant(v.I16, 4 * LANES)
    for register, width, height in (
        (WEIGHTS, full, rows),
        (INPUTS, columns, tokens),
        (UPPER, full, tokens),
        (LOWER, full, tokens),
    ):
        v.store(builder, width, place, 16 + 2 * register)
        v.store(builder, height, place, 48 + register)
    _tile(builder, "ldtilecfg", _pointer(builder, place))
    return ir.Constant(v.I64, 0)


configure = instruction(types.int64, [types.int64, types.int64], _emit_configure)
"""Give the calling thread's registers their shapes, for `inputs` codes of a token at once: (scratch, inputs) -> 0."""


def _emit_release(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    _tile(builder, "tilerelease")
    return values[0]


release = instruction(types.int64, [types.int64], _emit_release)
"""Free the calling thread's registers, which the system would save at every switch: (anything) -> the same."""


def inputs_at_once(form: Format) -> int:
    """Number of a token's codes, of both parts, that are multiplied by one instruction."""
    return 2 * form.group if form.bits == 4 else form.group


def serves(form: Format) -> bool:
    """Whether there is a matrix unit, and it can multiply with weights of `form`."""
    return matrix_unit() and form.bits <= 8 and form.group % 4 == 0 and inputs_at_once(form) <= 64


@intrinsic(prefer_literal=True)
def multiply_matrix_panel(
    _: Any,
    bits: Any,
    group: Any,
    offsets: Any,
    panel: Any,
    x: Any,
    x_stride: Any,
    sums: Any,
    sums_stride: Any,
    groups: Any,
    rows: Any,
    scratch: Any,
) -> Any:
    """Compute `LANES` outputs of `rows` tokens, from TOKENS to MOST_ROWS of them, and leave them in scratch memory.

    Arguments are those of `multiply_tile`, but that activations are split codes for 8-bit weights too. `scratch` is an
    address by which the registers have been configured; totals lie `TOTALS` bytes behind it. The last tile of tokens
    begins earlier if it would not be full, and computes some tokens again. Forms that the unit does not serve compile
    to nothing.
    """
    form = Format(bits.literal_value, group.literal_value, bool(offsets.literal_value))

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
        # A caller's branch that is never taken is compiled too.
        if serves(form):
            _emit(builder, form, values[3:])
        return context.get_dummy_value()

    return types.none(bits, group, offsets, *[types.int64] * 8), generate


def _emit(builder: ir.IRBuilder, form: Format, arguments: Sequence[v.Value]) -> None:
    panel, x, x_stride, sums, sums_stride, groups, rows, scratch = arguments
    weights, products, totals = (
        builder.add(scratch, ir.Constant(v.I64, place)) for place in (CONFIGURATION_BYTES, PRODUCTS, TOTALS)
    )
    tiles = _pieces(builder, rows, TOKENS)
    last_row = builder.sub(rows, ir.Constant(v.I64, TOKENS))
    zero = v.filled(v.F32, LANES, 0.0)

    def clear(tile: v.Value, _: list[v.Value]) -> list[v.Value]:
        _store_rows(builder, [zero] * TOKENS, _at(builder, totals, tile, REGISTER_BYTES))
        return []

    def add_block(block: v.Value, _: list[v.Value]) -> list[v.Value]:
        first = builder.mul(block, ir.Constant(v.I64, BLOCK))
        count = _smaller(builder, builder.sub(groups, first), ir.Constant(v.I64, BLOCK))
        panels = _at(builder, panel, first, form.group_bytes)
        inputs, factors = _at(builder, x, first, 2 * form.group), _at(builder, sums, first, SUMS_BYTES)

        def unpack(group: v.Value, _: list[v.Value]) -> list[v.Value]:
            place = _at(builder, weights, group, REGISTER_BYTES)
            _store_rows(builder, _weights(builder, form, _at(builder, panels, group, form.group_bytes)), place)
            return []

        def add_tile(tile: v.Value, _: list[v.Value]) -> list[v.Value]:
            row = _smaller(builder, builder.mul(tile, ir.Constant(v.I64, TOKENS)), last_row)
            codes = builder.add(inputs, builder.mul(row, x_stride))
            steps = builder.add(factors, builder.mul(row, sums_stride))

            def multiply(group: v.Value, _: list[v.Value]) -> list[v.Value]:
                place = _at(builder, products, group, 2 * REGISTER_BYTES)
                numbers = _at(builder, codes, group, 2 * form.group)
                _emit_multiply(builder, form, _at(builder, weights, group, REGISTER_BYTES), numbers, x_stride, place)
                return []

            def add(group: v.Value, before: list[v.Value]) -> list[v.Value]:
                dots = _dots(builder, form, _at(builder, products, group, 2 * REGISTER_BYTES))
                step = _at(builder, steps, group, SUMS_BYTES)
                scales = [builder.add(step, builder.mul(sums_stride, ir.Constant(v.I64, t))) for t in range(TOKENS)]
                return add_products(builder, form, _at(builder, panels, group, form.group_bytes), dots, scales, before)

            place = _at(builder, totals, tile, REGISTER_BYTES)
            before = [v.load(builder, zero.type, place, 4 * LANES * t) for t in range(TOKENS)]
            v.repeat(builder, count, [], multiply)
            _store_rows(builder, v.repeat(builder, count, before, add), place)
            return []

        v.repeat(builder, count, [], unpack)
        v.repeat(builder, tiles, [], add_tile)
        return []

    v.repeat(builder, tiles, [], clear)
    v.repeat(builder, _pieces(builder, groups, BLOCK), [], add_block)


def _weights(builder: ir.IRBuilder, form: Format, at: v.Value) -> list[v.Value]:
    """The weight codes of a group as the register's rows, each i8 [4 LANES], with four inputs of every output."""
    if form.bits == 8:
        return _byte_quads(builder, form, at)
    codes = nibble_quads(builder, form, at)
    return [*(builder.shl(code, v.like(code, LOW_BITS[form.bits])) for code in codes), *codes]


def _byte_quads(builder: ir.IRBuilder, form: Format, at: v.Value) -> list[v.Value]:
    """The 8-bit weight codes of a group, in vectors i8 [4 LANES] that have four inputs of every output."""
    pairs = byte_pairs(builder, form, at)
    words = [builder.bitcast(pair, v.vector(v.I16, LANES)) for pair in pairs]
    order = [lane + half * LANES for lane in range(LANES) for half in (0, 1)]
    mask = ir.Constant(v.vector(v.I32, 2 * LANES), order)
    quads = [builder.shuffle_vector(words[i], words[i + 1], mask) for i in range(0, len(words), 2)]
    return [builder.bitcast(quad, v.vector(v.I8, 4 * LANES)) for quad in quads]


def _emit_multiply(
    builder: ir.IRBuilder, form: Format, weights: v.Value, codes: v.Value, stride: v.Value, place: v.Value
) -> None:
    """Multiply tokens' codes with a group of weights, and store the sums at `place`."""
    signed = form.bits == 8 and not form.offsets
    row = ir.Constant(v.I64, 4 * LANES)
    _load(builder, WEIGHTS, weights, row)
    for part, register in enumerate((UPPER, LOWER) if form.bits == 8 else (UPPER,)):
        _load(builder, INPUTS, _at(builder, codes, ir.Constant(v.I64, part), form.group), stride)
        _tile(builder, "tilezero", _register(register))
        _tile(builder, "tdpbssd" if signed else "tdpbsud", *map(_register, (register, INPUTS, WEIGHTS)))
        at = _at(builder, place, ir.Constant(v.I64, part), REGISTER_BYTES)
        _tile(builder, "tilestored64", _register(register), _pointer(builder, at), row)


def _dots(builder: ir.IRBuilder, form: Format, place: v.Value) -> list[v.Value]:
    """Every token's products with a group of a panel, i32 [LANES]."""
    kind = v.vector(v.I32, LANES)
    upper = [v.load(builder, kind, place, 4 * LANES * token) for token in range(TOKENS)]
    if form.bits == 4:
        return upper
    shifted = [builder.shl(value, v.like(value, LOW_BITS[form.bits])) for value in upper]
    lower = [v.load(builder, kind, place, REGISTER_BYTES + 4 * LANES * token) for token in range(TOKENS)]
    return [builder.add(a, b) for a, b in zip(shifted, lower, strict=True)]


def _store_rows(builder: ir.IRBuilder, rows: Sequence[v.Value], place: v.Value) -> None:
    for index, row in enumerate(rows):
        v.store(builder, row, place, 4 * LANES * index)


def _at(builder: ir.IRBuilder, base: v.Value, index: v.Value, size: int) -> v.Value:
    """The address of element `index` of those of `size` bytes at `base`."""
    return builder.add(base, builder.mul(index, ir.Constant(v.I64, size)))


def _pieces(builder: ir.IRBuilder, count: v.Value, size: int) -> v.Value:
    """Number of pieces of `size`, the last perhaps not full, that `count` makes."""
    return builder.sdiv(builder.add(count, ir.Constant(v.I64, size - 1)), ir.Constant(v.I64, size))


def _smaller(builder: ir.IRBuilder, a: v.Value, b: v.Value) -> v.Value:
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def _load(builder: ir.IRBuilder, register: int, address: v.Value, stride: v.Value) -> None:
    _tile(builder, "tileloadd64", _register(register), _pointer(builder, address), stride)


def _tile(builder: ir.IRBuilder, name: str, *arguments: v.Value) -> None:
    if matrix_unit():
        v.call(builder, f"llvm.x86.{name}", ir.VoidType(), arguments)


def _register(index: int) -> v.Value:
    return ir.Constant(v.I8, index)


def _pointer(builder: ir.IRBuilder, address: v.Value) -> v.Value:
    return builder.inttoptr(address, v.I8.as_pointer())
