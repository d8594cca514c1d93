"""The inner loops of a matrix product in LLVM instructions: quantising, and one panel of outputs for a few tokens.

Panels have the layout of `panels.py`; activations are quantised in groups, or float32 for dense weights.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu import vectors as v
from kernels.cpu.activations import LOW_BITS, SUMS_BYTES, TOKENS
from kernels.cpu.panels import LANES, Format


@intrinsic(prefer_literal=True)
def quantize_group(_: Any, group: Any, low_bits: Any, split: Any, x: Any, codes: Any, sums: Any) -> Any:
    """Quantise a token's activations [group] float32 for `multiply_tile`: x = scale * code, with 8 + `low_bits` bits.

    `group`, `low_bits` and `split` are compile-time constants; x, `codes` and `sums` are addresses. Codes are [group]
    int16; `split` codes are [2, group] int8, with code = 2^low_bits * first + second. The sums are the scale, which is
    a NaN if any activation is a NaN or infinite, and the scale times the sum of codes.
    """
    size, low, halved = group.literal_value, low_bits.literal_value, bool(split.literal_value)

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
        # A caller's branch that is never taken is compiled too.
        if low:
            _emit_quantize(builder, size, low, halved, values[3:])
        return context.get_dummy_value()

    return types.none(group, low_bits, split, *[types.int64] * 3), generate


def _emit_quantize(builder: ir.IRBuilder, group: int, low: int, split: bool, arguments: Sequence[v.Value]) -> None:
    x, codes, sums = arguments
    # The lower part is signed, from -half to half - 1, and the upper part is at most 127.
    half = 1 << (low - 1)
    largest = (127 << low) + half - 1
    numbers = v.load(builder, v.vector(v.F32, group), x)
    bits = builder.bitcast(numbers, v.vector(v.I32, group))
    # Without their signs, bits of floats are in the floats' order, and those of infinity and NaN are the largest.
    peak = v.across(
        builder,
        lambda a, b: builder.select(builder.icmp_signed(">", a, b), a, b),
        builder.and_(bits, v.like(bits, 0x7FFFFFFF)),
    )
    infinite = builder.icmp_signed(">=", peak, v.like(peak, 0x7F800000))
    size = builder.bitcast(peak, v.F32)
    scale = builder.fdiv(size, v.like(size, largest))
    scale = builder.select(infinite, v.like(scale, float("nan")), scale)
    normal = builder.fcmp_ordered(">", scale, v.like(scale, 1e-38))
    inverse = builder.select(normal, builder.fdiv(v.like(scale, 1), scale), v.like(scale, 0))
    scaled = v.rint(builder, builder.fmul(numbers, v.splat(builder, inverse, group)))
    integers = builder.fptosi(scaled, bits.type)
    if split:
        upper = builder.ashr(builder.add(integers, v.like(integers, half)), v.like(integers, low))
        lower = builder.sub(integers, builder.shl(upper, v.like(upper, low)))
        v.store(builder, builder.trunc(upper, v.vector(v.I8, group)), codes)
        v.store(builder, builder.trunc(lower, v.vector(v.I8, group)), codes, group)
    else:
        v.store(builder, builder.trunc(integers, v.vector(v.I16, group)), codes)
    total = builder.sitofp(v.across(builder, builder.add, integers), v.F32)
    v.store(builder, scale, sums)
    v.store(builder, builder.fmul(scale, total), sums, 4)


@intrinsic(prefer_literal=True)
def multiply_tile(
    _: Any,
    bits: Any,
    group: Any,
    offsets: Any,
    tokens: Any,
    panel: Any,
    x: Any,
    stride: Any,
    sums: Any,
    groups: Any,
    out: Any,
) -> Any:
    """Compute `LANES` outputs of `tokens` tokens, and write them to `out`, [tokens, LANES] float32.

    `bits`, `group`, `offsets` (the weight's `Format`) and `tokens` are compile-time constants. `panel`, x, `sums` and
    `out` are addresses, and `groups` is the number of groups in the panel. Activations and sums are those of
    `activations.Rounding`; if activations are float32, tokens lie `stride` bytes apart.
    """
    form = Format(bits.literal_value, group.literal_value, offsets.literal_value)
    count = tokens.literal_value

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
        _emit(builder, form, count, values[4:])
        return context.get_dummy_value()

    return types.none(bits, group, offsets, tokens, *[types.int64] * 6), generate


def _emit(builder: ir.IRBuilder, form: Format, tokens: int, arguments: Sequence[v.Value]) -> None:
    panel, x, stride, sums, groups, out = arguments

    def place(base: v.Value, index: v.Value, size: int) -> v.Value:
        return builder.add(base, builder.mul(index, ir.Constant(index.type, size)))

    def add(group: v.Value, totals: list[v.Value]) -> list[v.Value]:
        at = place(panel, group, form.group_bytes)
        v.prefetch_ahead(builder, at, form.group_bytes)
        if form.bits > 8:
            first = place(x, group, form.group_input_bytes)
            return _add_dense(builder, form, at, [place(first, stride, t) for t in range(tokens)], totals)
        # Constant distances are part of the instructions that load; others would take instructions of their own.
        first, factors = place(x, group, TOKENS * form.group_input_bytes), place(sums, group, TOKENS * SUMS_BYTES)
        inputs = [v.at(builder, first, t * form.group_input_bytes) for t in range(tokens)]
        return _add_group(
            builder, form, at, inputs, [v.at(builder, factors, t * SUMS_BYTES) for t in range(tokens)], totals
        )

    zero = v.filled(v.F32, LANES, 0.0)
    for t, value in enumerate(v.repeat(builder, groups, [zero] * tokens, add)):
        v.store(builder, value, out, 4 * LANES * t)


def _add_group(
    builder: ir.IRBuilder,
    form: Format,
    at: v.Value,
    inputs: Sequence[v.Value],
    factors: Sequence[v.Value],
    totals: Sequence[v.Value],
) -> list[v.Value]:
    """Totals f32 [LANES] of every token, with one group's products added."""
    dots = (_dot_nibbles if form.bits == 4 else _dot_bytes)(builder, form, at, inputs)
    return _add_products(builder, form, at, dots, factors, totals)


def _add_products(
    builder: ir.IRBuilder,
    form: Format,
    at: v.Value,
    dots: Sequence[v.Value],
    factors: Sequence[v.Value],
    totals: Sequence[v.Value],
) -> list[v.Value]:
    """Totals f32 [LANES] of every token, with the products of one group, the sums of codes i32 [LANES], added.

    `at` is the address of the weight's group, and `factors` are those of the tokens' sums for it.
    """
    scale = v.halves_to_floats(builder, v.load(builder, v.vector(v.I16, LANES), at, form.codes_bytes))
    offset = load_offsets(builder, form, at) if form.offsets else None
    added = []
    for dot, factor, total in zip(dots, factors, totals, strict=True):
        step = v.splat(builder, v.load(builder, v.F32, factor), LANES)
        value = v.fma(builder, builder.sitofp(dot, total.type), builder.fmul(scale, step), total)
        if offset is not None:
            mass = v.splat(builder, v.load(builder, v.F32, factor, 4), LANES)
            value = v.fma(builder, offset, mass, value)
        added.append(value)
    return added


def load_offsets(builder: ir.IRBuilder, form: Format, at: v.Value) -> v.Value:
    """The offsets of a group at address `at`, float32 [LANES]."""
    if form.offsets == 4:
        return v.load(builder, v.vector(v.F32, LANES), at, form.offsets_place)
    return v.halves_to_floats(builder, v.load(builder, v.vector(v.I16, LANES), at, form.offsets_place))


def _dot_nibbles(builder: ir.IRBuilder, form: Format, at: v.Value, inputs: Sequence[v.Value]) -> list[v.Value]:
    """Sums of 4-bit weight codes times activation codes, stored as two parts: i32 [LANES] for every token."""
    if not v.sums_any_quads():
        codes = _nibble_quads(builder, form, at)
        shift = v.filled(v.I32, LANES, LOW_BITS[form.bits])
        parts = [[v.add_quads(builder, codes, part) for part in _octets(builder, form, x)] for x in inputs]
        return [builder.add(builder.shl(upper, shift), lower) for upper, lower in parts]
    # Sixteen times a code is a byte too, so that both parts go into one sum.
    codes = [*_nibble_quads(builder, form, at, LOW_BITS[form.bits]), *_nibble_quads(builder, form, at)]
    return [v.add_quads(builder, codes, [quad for part in _octets(builder, form, x) for quad in part]) for x in inputs]


def _nibble_quads(builder: ir.IRBuilder, form: Format, at: v.Value, shift: int = 0) -> list[v.Value]:
    """A group's 4-bit weight codes times 2^`shift`, 0 or 4, in vectors u8 [4 LANES]: four inputs of every output."""
    wide = v.vector(v.I8, 4 * LANES)
    loaded = [v.load(builder, wide, at, 4 * LANES * i) for i in range(form.group // 8)]
    low, high = (v.filled(v.I8, 4 * LANES, bits) for bits in (0x0F, 0xF0))
    four = v.filled(v.I8, 4 * LANES, 4)
    if shift:
        return [*[builder.shl(code, four) for code in loaded], *[builder.and_(code, high) for code in loaded]]
    return [*[builder.and_(code, low) for code in loaded], *[builder.lshr(code, four) for code in loaded]]


def _octets(builder: ir.IRBuilder, form: Format, x: v.Value) -> list[list[v.Value]]:
    """Both parts of a token's activation codes, in vectors i8 [4 LANES] that repeat four inputs for every output."""
    quads = [v.load(builder, v.I32, x, 4 * quad) for quad in range(form.group // 2)]
    codes = [builder.bitcast(v.splat(builder, quad, LANES), v.vector(v.I8, 4 * LANES)) for quad in quads]
    return [codes[: form.group // 4], codes[form.group // 4 :]]


def _dot_bytes(builder: ir.IRBuilder, form: Format, at: v.Value, inputs: Sequence[v.Value]) -> list[v.Value]:
    """Sums of 8-bit weight codes times 16-bit activation codes: i32 [LANES] for every token."""
    wide = v.vector(v.I16, 2 * LANES)
    dots: list[v.Value] = [v.filled(v.I32, LANES, 0) for _ in inputs]
    for pair, stored in enumerate(_byte_pairs(builder, form, at)):
        codes = builder.zext(stored, wide) if form.offsets else builder.sext(stored, wide)
        for t, x in enumerate(inputs):
            numbers = builder.bitcast(v.splat(builder, v.load(builder, v.I32, x, 4 * pair), LANES), wide)
            dots[t] = builder.add(dots[t], v.add_pairs(builder, codes, numbers))
    return dots


def _byte_pairs(builder: ir.IRBuilder, form: Format, at: v.Value) -> list[v.Value]:
    """The 8-bit weight codes of a group, in vectors i8 [2 LANES] that have two inputs of every output."""
    return [v.load(builder, v.vector(v.I8, 2 * LANES), at, 2 * LANES * pair) for pair in range(form.group // 2)]


def _add_dense(
    builder: ir.IRBuilder, form: Format, at: v.Value, inputs: Sequence[v.Value], totals: Sequence[v.Value]
) -> list[v.Value]:
    """Totals f32 [LANES] of every token, with products of bfloat16 or float32 weights and float32 activations added."""
    added = list(totals)
    for k in range(form.group):
        if form.bits == 16:
            stored = builder.zext(v.load(builder, v.vector(v.I16, LANES), at, 2 * LANES * k), v.vector(v.I32, LANES))
            weight = builder.bitcast(builder.shl(stored, v.filled(v.I32, LANES, 16)), v.vector(v.F32, LANES))
        else:
            weight = v.load(builder, v.vector(v.F32, LANES), at, 4 * LANES * k)
        for t, x in enumerate(inputs):
            added[t] = v.fma(builder, weight, v.splat(builder, v.load(builder, v.F32, x, 4 * k), LANES), added[t])
    return added
