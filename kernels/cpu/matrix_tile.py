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
from kernels.cpu.tile import SUMS_BYTES, add_products, byte_pairs, nibble_quads

TOKENS = 16
"""Number of tokens in a tile, one for each row of a register."""
CONFIGURATION_BYTES = 64
SCRATCH = CONFIGURATION_BYTES + 3 * 64 * TOKENS
"""Bytes of scratch memory: the configuration, a group of weights, and two registers of sums."""

WEIGHTS, INPUTS, LARGER, SMALLER = range(4)
"""Registers: weights u8 or i8 [group / 4, 4 LANES], a half of activations' codes i8 [TOKENS, group], and the sums
i32 [TOKENS, LANES] of the larger and smaller halves."""


def _emit_configure(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    place, group = values
    v.store(builder, v.filled(v.I8, CONFIGURATION_BYTES, 0), place)
    v.store(builder, ir.Constant(v.I8, 1), place)
    columns = builder.trunc(group, v.I16)
    rows = builder.trunc(builder.lshr(group, ir.Constant(group.type, 2)), v.I8)
    tokens, full = ir.Constant(v.I8, TOKENS), ir.Constant(v.I16, 4 * LANES)
    for register, width, height in (
        (WEIGHTS, full, rows),
        (INPUTS, columns, tokens),
        (LARGER, full, tokens),
        (SMALLER, full, tokens),
    ):
        v.store(builder, width, place, 16 + 2 * register)
        v.store(builder, height, place, 48 + register)
    v.call(builder, "llvm.x86.ldtilecfg", ir.VoidType(), [_pointer(builder, place)])
    return ir.Constant(v.I64, 0)


configure = instruction(types.int64, [types.int64, types.int64], _emit_configure)
"""Give the calling thread's registers their shapes, for groups of `group` inputs: (scratch, group) -> 0."""


def _emit_release(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    v.call(builder, "llvm.x86.tilerelease", ir.VoidType(), [])
    return values[0]


release = instruction(types.int64, [types.int64], _emit_release)
"""Free the calling thread's registers, which the system would save at every switch: (anything) -> the same."""


@intrinsic(prefer_literal=True)
def multiply_matrix_tile(
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
    out: Any,
    out_stride: Any,
    scratch: Any,
) -> Any:
    """Compute `LANES` outputs of `TOKENS` tokens, and write them to `out`, [TOKENS, LANES] float32.

    Arguments are those of `multiply_tile`, but that activations are split codes for 8-bit weights too. `scratch` is the
    address of `SCRATCH` bytes, by which the registers have been configured.
    """
    form = Format(bits.literal_value, group.literal_value, bool(offsets.literal_value))

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> Any:
        _emit(builder, form, values[3:])
        return context.get_dummy_value()

    return types.none(bits, group, offsets, *[types.int64] * 9), generate


def _emit(builder: ir.IRBuilder, form: Format, arguments: Sequence[v.Value]) -> None:
    panel, x, x_stride, sums, sums_stride, groups, out, out_stride, scratch = arguments
    weights, larger, smaller = (
        builder.add(scratch, ir.Constant(v.I64, CONFIGURATION_BYTES + 64 * TOKENS * index)) for index in range(3)
    )

    def add(group: v.Value, totals: list[v.Value]) -> list[v.Value]:
        at = builder.add(panel, builder.mul(group, ir.Constant(v.I64, form.group_bytes)))
        codes = builder.add(x, builder.mul(group, ir.Constant(v.I64, 2 * form.group)))
        for index, quad in enumerate(nibble_quads(builder, form, at) if form.bits == 4 else _byte_quads(builder, form, at)):
            v.store(builder, quad, weights, 4 * LANES * index)
        _load(builder, WEIGHTS, weights, ir.Constant(v.I64, 4 * LANES))
        for sum_register, half, place in ((LARGER, 0, larger), (SMALLER, form.group, smaller)):
            _load(builder, INPUTS, builder.add(codes, ir.Constant(v.I64, half)), x_stride)
            v.call(builder, "llvm.x86.tilezero", ir.VoidType(), [_register(sum_register)])
            signed = form.bits == 8 and not form.offsets
            name = "llvm.x86.tdpbssd" if signed else "llvm.x86.tdpbsud"
            v.call(builder, name, ir.VoidType(), [_register(r) for r in (sum_register, INPUTS, WEIGHTS)])
            stored = [_register(sum_register), _pointer(builder, place), ir.Constant(v.I64, 4 * LANES)]
            v.call(builder, "llvm.x86.tilestored64", ir.VoidType(), stored)
        dots = [_sums(builder, larger, smaller, 4 * LANES * token) for token in range(TOKENS)]
        factors = builder.add(sums, builder.mul(group, ir.Constant(v.I64, SUMS_BYTES)))
        steps = [builder.add(factors, builder.mul(sums_stride, ir.Constant(v.I64, t))) for t in range(TOKENS)]
        return add_products(builder, form, at, dots, steps, totals)

    zero = v.filled(v.F32, LANES, 0.0)
    for t, value in enumerate(v.repeat(builder, groups, [zero] * TOKENS, add)):
        v.store(builder, value, builder.add(out, builder.mul(out_stride, ir.Constant(v.I64, t))))


def _sums(builder: ir.IRBuilder, larger: v.Value, smaller: v.Value, offset: int) -> v.Value:
    """A token's products with a panel, i32 [LANES], from those of both halves of its codes."""
    kind = v.vector(v.I32, LANES)
    high = builder.shl(v.load(builder, kind, larger, offset), v.filled(v.I32, LANES, 8))
    return builder.add(high, v.load(builder, kind, smaller, offset))


def _byte_quads(builder: ir.IRBuilder, form: Format, at: v.Value) -> list[v.Value]:
    """The 8-bit weight codes of a group, in vectors i8 [4 LANES] that have four inputs of every output."""
    pairs = byte_pairs(builder, form, at)
    words = [builder.bitcast(pair, v.vector(v.I16, LANES)) for pair in pairs]
    order = [lane + half * LANES for lane in range(LANES) for half in (0, 1)]
    mask = ir.Constant(v.vector(v.I32, 2 * LANES), order)
    quads = [builder.shuffle_vector(words[i], words[i + 1], mask) for i in range(0, len(words), 2)]
    return [builder.bitcast(quad, v.vector(v.I8, 4 * LANES)) for quad in quads]


def _load(builder: ir.IRBuilder, register: int, address: v.Value, stride: v.Value) -> None:
    v.call(builder, "llvm.x86.tileloadd64", ir.VoidType(), [_register(register), _pointer(builder, address), stride])


def _register(index: int) -> v.Value:
    return ir.Constant(v.I8, index)


def _pointer(builder: ir.IRBuilder, address: v.Value) -> v.Value:
    return builder.inttoptr(address, v.I8.as_pointer())
