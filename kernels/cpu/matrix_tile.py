"""The inner loops of a matrix product on the matrix unit of Intel CPUs (AMX), which multiplies bfloat16 numbers.

Weights are unpacked to bfloat16, two panels at a time, and stay in scratch memory while all tokens are multiplied with
them; activations are bfloat16 numbers, or sums of two. The unit adds in float32. An output's sum has one order, so that
a token's outputs have the same bits alone and beside others.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu import matrix_unit as unit
from kernels.cpu import vectors as v
from kernels.cpu.activations import DEPTH, TOKENS, parts, serves
from kernels.cpu.beside import Work
from kernels.cpu.instructions import instruction
from kernels.cpu.matrix_weights import mix, unpacked
from kernels.cpu.panels import LANES, Format
from kernels.cpu.target import CONFIGURATION_BYTES, REGISTER_BYTES, REGISTER_ROWS

STEPS = 64
"""Limit of steps whose weights are unpacked at a time."""
RING = 4
"""Steps whose weights scratch memory keeps where no other tokens need them: few enough for the first-level cache."""
PANELS = 2
"""Panels that are multiplied together, so that activations are loaded half as often."""
UNPACKED = CONFIGURATION_BYTES
REST = UNPACKED + PANELS * STEPS * REGISTER_BYTES
"""Places in scratch memory: behind the registers' configuration lie the weights, [PANELS, STEPS, DEPTH / 2, LANES, 2]
bfloat16, and behind them outputs [MOST_ROWS, PANELS * LANES] float32 of panels that are not full."""
WEIGHTS, INPUTS, SUMS = (0, 1), (2, 3), ((4, 5), (6, 7))
"""Registers: a step's weights [DEPTH / 2, LANES, 2] of each panel, its activations [TOKENS, DEPTH] of each tile of
tokens, and sums float32 [TOKENS, LANES] of each panel and tile."""


def _emit_configure(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    place, tokens = values
    full, height = ir.Constant(v.I64, 64), ir.Constant(v.I64, REGISTER_ROWS)
    unit.configure(builder, place, [(full, height)] * 2 + [(full, tokens)] * 6)
    return ir.Constant(v.I64, 0)


configure = instruction(types.int64, [types.int64, types.int64], _emit_configure)
"""Give the calling thread's registers their shapes, for up to 16 tokens in a tile: (scratch, tokens) -> 0."""


@intrinsic(prefer_literal=True)
def round_inputs(_: Any, mixed: Any, count: Any, x: Any, out: Any) -> Any:
    """Round a token's activations [DEPTH] float32 to sums of `count` bfloat16 numbers, `mixed` if that is not 0.

    `mixed` and `count` are compile-time constants; x and `out` are addresses. The parts are rows of `count` registers
    [TOKENS, DEPTH] that lie one behind the other; `out` is the row in the first of them.
    """
    other, many = bool(mixed.literal_value), count.literal_value

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
        store_inputs(builder, v.load(builder, v.vector(v.F32, DEPTH), values[2]), other, many, values[3])
        return context.get_dummy_value()

    return types.none(mixed, count, types.int64, types.int64), generate


def store_inputs(builder: ir.IRBuilder, numbers: v.Value, mixed: bool, count: int, out: v.Value) -> None:
    """Write a step's activations float32 [DEPTH] to `out`, as `round_inputs` does."""
    for part, halves in enumerate(v.split(builder, numbers) if count == 2 else [v.to_bfloat16(builder, numbers)]):
        v.store(builder, mix(builder, halves) if mixed else halves, out, part * REGISTER_BYTES)


class _Panels(NamedTuple):
    """Addresses and numbers of the products with two panels, see `multiply_panels`."""

    keeps: v.Value
    first: v.Value
    second: v.Value
    exponent: v.Value
    steps: v.Value
    x: v.Value
    tile_bytes: v.Value
    begun: v.Value
    begun_stride: v.Value
    out: v.Value
    out_stride: v.Value
    scratch: v.Value
    work: v.Value


def panels_product(begin_work: Work | None = None) -> Any:
    """A function for kernels that multiplies, see `multiply_panels`, and does other work in every step."""

    @intrinsic(prefer_literal=True)
    def multiply_panels(
        _: Any,
        bits: Any,
        group: Any,
        offsets: Any,
        tiles: Any,
        keeps: Any,
        first: Any,
        second: Any,
        exponent: Any,
        steps: Any,
        x: Any,
        tile_bytes: Any,
        begun: Any,
        begun_stride: Any,
        out: Any,
        out_stride: Any,
        scratch: Any,
        work: Any,
    ) -> Any:
        """Multiply some tokens with the `first` and the `second` panel, for up to STEPS steps of the sums.

        `bits`, `group` and `offsets` (the weight's `Format`) are compile-time constants; all others are addresses,
        strides of rows in bytes and numbers. There are 1 or 2 `tiles` of tokens. Weights, with the `exponent` of
        `Panels`, are written to scratch memory, which keeps those of the last `keeps` steps, STEPS or RING; if that is
        0, all are there already. x has the tokens' activations as `round_inputs` writes them, tiles `tile_bytes` apart.
        Sums begin with the numbers at `begun`, or with 0 if that is 0, and go to `out`, [tokens, PANELS * LANES]
        float32.
        """
        form = Format(bits.literal_value, group.literal_value, offsets.literal_value)

        def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
            # A caller's branch that is never taken is compiled too.
            if serves(form, DEPTH // form.group):
                for many, unpacks in product((1, 2), (False, True)):
                    fits = builder.icmp_signed("==", values[3], ir.Constant(v.I64, many))
                    kept = builder.icmp_signed("!=" if unpacks else "==", values[4], ir.Constant(v.I64, 0))
                    with builder.if_then(builder.and_(fits, kept)):
                        _emit(builder, form, many, unpacks, _Panels(*values[4:]), begin_work)
            return context.get_dummy_value()

        return types.none(bits, group, offsets, *[types.int64] * 14), generate

    return multiply_panels


def _emit(
    builder: ir.IRBuilder,
    form: Format,
    tiles: int,
    unpacks: bool,
    told: _Panels,
    begin_work: Work | None,
) -> None:
    weights = [v.at(builder, told.scratch, UNPACKED + panel * STEPS * REGISTER_BYTES) for panel in range(PANELS)]
    inputs = [_place(builder, told.x, told.tile_bytes, tile) for tile in range(tiles)]
    products = PANELS + parts(form) * tiles * (1 + PANELS)
    go_on = begin_work(builder, told.work, told.steps) if begin_work is not None and not unpacks else None

    def unpacked_at(step: v.Value) -> list[v.Value]:
        kept = builder.and_(step, builder.sub(told.keeps, ir.Constant(v.I64, 1))) if unpacks else step
        return [_place(builder, place, kept, REGISTER_BYTES) for place in weights]

    def multiply(step: v.Value) -> Iterator[None]:
        here = unpacked_at(step)
        numbers = [_place(builder, place, step, parts(form) * REGISTER_BYTES) for place in inputs]
        return _emit_products(builder, parts(form), here, numbers)

    def unpack(step: v.Value) -> Iterator[None]:
        for panel, place in zip((told.first, told.second), unpacked_at(step), strict=True):
            size = DEPTH // form.group * form.group_bytes
            at = _place(builder, panel, step, size)
            v.prefetch_ahead(builder, at, size)
            yield from _emit_unpack(builder, form, at, told.exponent, place)

    def multiply_unpacked(step: v.Value, _: list[v.Value]) -> list[v.Value]:
        emitting = multiply(step)
        if go_on is not None:
            _advance(emitting, products // 2)
            go_on(step)
        _exhaust(emitting)
        return []

    def unpack_next(step: v.Value, _: list[v.Value]) -> list[v.Value]:
        # A core does both at a time only if their instructions stand among each other: it looks no further ahead than
        # to the end of a step.
        _spread(multiply(step), products, unpack(builder.add(step, ir.Constant(v.I64, 1))), PANELS * DEPTH // 2)
        return []

    _emit_begin(builder, tiles, told.begun, told.begun_stride)
    if unpacks:
        # Numbers cannot be loaded until their stores are done, so the unit is one step behind.
        _exhaust(unpack(ir.Constant(v.I64, 0)))
        last = builder.sub(told.steps, ir.Constant(v.I64, 1))
        with builder.if_then(builder.icmp_signed(">", last, ir.Constant(v.I64, 0))):
            v.repeat(builder, last, [], unpack_next)
        _exhaust(multiply(last))
    else:
        v.repeat(builder, told.steps, [], multiply_unpacked)
    for tile in range(tiles):
        place = _place(builder, told.out, told.out_stride, TOKENS * tile)
        for panel in range(PANELS):
            unit.store(builder, SUMS[panel][tile], v.at(builder, place, 4 * LANES * panel), told.out_stride)


def _emit_begin(builder: ir.IRBuilder, tiles: int, begun: v.Value, stride: v.Value) -> None:
    """Load the sums of all panels and tiles, or set them to 0."""
    with builder.if_else(builder.icmp_signed("==", begun, ir.Constant(v.I64, 0))) as (fresh, later):
        with fresh:
            for tile in range(tiles):
                for panel in range(PANELS):
                    unit.clear(builder, SUMS[panel][tile])
        with later:
            for tile in range(tiles):
                place = _place(builder, begun, stride, TOKENS * tile)
                for panel in range(PANELS):
                    unit.load(builder, SUMS[panel][tile], v.at(builder, place, 4 * LANES * panel), stride)


def _emit_products(
    builder: ir.IRBuilder,
    count: int,
    weights: Sequence[v.Value],
    inputs: Sequence[v.Value],
) -> Iterator[None]:
    """Add the products of one step: each tile's activations, in `count` parts, with each panel's weights.

    Yields after each instruction.
    """
    row = ir.Constant(v.I64, 64)
    for panel, place in enumerate(weights):
        unit.load(builder, WEIGHTS[panel], place, row)
        yield
    for part in range(count):
        for tile, numbers in enumerate(inputs):
            # Weights stay in the first-level cache, which has no room for activations beside them.
            unit.load_passing(builder, INPUTS[tile], v.at(builder, numbers, part * REGISTER_BYTES), row)
            yield
            for panel in range(PANELS):
                unit.multiply(builder, "tdpbf16ps", SUMS[panel][tile], INPUTS[tile], WEIGHTS[panel])
                yield


def _emit_unpack(builder: ir.IRBuilder, form: Format, at: v.Value, exponent: v.Value, place: v.Value) -> Iterator[None]:
    """Write the weights of a step, in groups of a panel from `at` on, to `place`: [DEPTH / 2, LANES, 2] bfloat16.

    Yields after each of the DEPTH / 2 stores.
    """
    for group in range(DEPTH // form.group):
        source = v.at(builder, at, group * form.group_bytes)
        for index, pair in enumerate(unpacked(builder, form, source, exponent)):
            v.store(builder, pair, place, (group * form.group // 2 + index) * 4 * LANES)
            yield


def _exhaust(emitting: Iterator[None]) -> None:
    """Emit all that is left."""
    for _ in emitting:
        pass


def _advance(emitting: Iterator[None], count: int) -> None:
    """Emit `count` instructions."""
    for _ in range(count):
        next(emitting)


def _spread(emitting: Iterator[None], count: int, among: Iterator[None], places: int) -> None:
    """Emit all `count` instructions of an emitter evenly among the `places` that another one emits."""
    for place, _ in enumerate(among):
        _advance(emitting, count * (place + 1) // places - count * place // places)
    _exhaust(emitting)


def _place(builder: ir.IRBuilder, base: v.Value, index: v.Value, size: int) -> v.Value:
    """The address `index` times `size` bytes behind `base`."""
    return builder.add(base, builder.mul(index, ir.Constant(v.I64, size)))
