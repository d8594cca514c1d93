"""Vector arithmetic as LLVM instructions, for kernels that Numba's own vectoriser would compile badly.

Every function emits its instructions at the builder's position. A vector may have more lanes than a register; LLVM
then splits it.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from llvmlite import ir

from kernels.cpu.target import dot_path, features, register_floats

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
HALF = ir.HalfType()
Value: TypeAlias = Any
"""An `ir.Value`; llvmlite has no type annotations."""


def vector(element: ir.Type, lanes: int) -> ir.Type:
    """The type of a vector of `lanes` elements."""
    return ir.VectorType(element, lanes)


def splat(builder: ir.IRBuilder, value: Value, lanes: int) -> Value:
    """A vector with `value` in every lane."""
    one = builder.insert_element(ir.Constant(vector(value.type, lanes), ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(vector(I32, lanes), [0] * lanes))


def filled(element: ir.Type, lanes: int, value: float) -> Value:
    """A constant vector with `value` in every lane."""
    return ir.Constant(vector(element, lanes), [value] * lanes)


def load(builder: ir.IRBuilder, kind: ir.Type, address: Value, offset: int = 0) -> Value:
    """Load a value of the type `kind` from `offset` bytes behind `address`, an integer that need not be aligned."""
    place = builder.add(address, ir.Constant(address.type, offset)) if offset else address
    value = builder.load(builder.inttoptr(place, kind.as_pointer()))
    value.align = 1
    return value


def store(builder: ir.IRBuilder, value: Value, address: Value, offset: int = 0) -> None:
    """Store `value` at `offset` bytes behind `address`, an integer that need not be aligned."""
    place = builder.add(address, ir.Constant(address.type, offset)) if offset else address
    builder.store(value, builder.inttoptr(place, value.type.as_pointer())).align = 1


def fma(builder: ir.IRBuilder, a: Value, b: Value, c: Value) -> Value:
    """The vector a * b + c of float32 vectors, rounded once if the CPU has such an instruction."""
    return _call(builder, f"llvm.fmuladd.v{a.type.count}f32", a.type, [a, b, c])


def halves_to_floats(builder: ir.IRBuilder, halves: Value) -> Value:
    """Finite float16 numbers, given by their bits i16 [lanes], as float32 [lanes]."""
    lanes = halves.type.count
    if "f16c" in features():
        return builder.fpext(builder.bitcast(halves, vector(HALF, lanes)), vector(F32, lanes))
    # float16's exponent and fraction in float32's places are a number that is too small by a factor of 2^112.
    wide = builder.zext(halves, vector(I32, lanes))
    sign = builder.shl(builder.and_(wide, filled(I32, lanes, 0x8000)), filled(I32, lanes, 16))
    magnitude = builder.shl(builder.and_(wide, filled(I32, lanes, 0x7FFF)), filled(I32, lanes, 13))
    number = builder.fmul(builder.bitcast(magnitude, vector(F32, lanes)), filled(F32, lanes, 2.0**112))
    return builder.bitcast(builder.or_(builder.bitcast(number, sign.type), sign), number.type)


def add_pairs(builder: ir.IRBuilder, a: Value, b: Value) -> Value:
    """Products of a and b, i16 [2 n], with neighbours added: i32 [n]."""
    lanes = a.type.count // 2
    if dot_path() != "portable" and lanes == register_floats():
        name = "llvm.x86.avx2.pmadd.wd" if lanes == 8 else "llvm.x86.avx512.pmaddw.d.512"
        return _call(builder, name, vector(I32, lanes), [a, b])
    wide = vector(I32, 2 * lanes)
    return _neighbours(builder, builder.mul(builder.sext(a, wide), builder.sext(b, wide)))


def add_quads(builder: ir.IRBuilder, codes: Sequence[Value], numbers: Sequence[Value]) -> Value:
    """Products of codes, each u8 [4 n], and numbers, each i8 [4 n], summed in fours and over all vectors: i32 [n].

    The sum of two neighbouring products over all vectors must fit into an i16, as for eight vectors of 4-bit codes.
    """
    lanes = codes[0].type.count // 4
    whole = lanes == register_floats()
    if whole and dot_path().endswith("vnni"):
        total = filled(I32, lanes, 0)
        for a, b in zip(codes, numbers, strict=True):
            total = _call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", total.type, [total, a, b])
        return total
    if whole and dot_path() == "avx2":
        pairs = [
            _call(builder, "llvm.x86.avx2.pmadd.ub.sw", vector(I16, 2 * lanes), [a, b])
            for a, b in zip(codes, numbers, strict=True)
        ]
        summed = sum_up(builder.add, pairs)
        return add_pairs(builder, summed, filled(I16, 2 * lanes, 1))
    wide = vector(I16, 4 * lanes)
    pairs = [
        _neighbours(builder, builder.mul(builder.zext(a, wide), builder.sext(b, wide)))
        for a, b in zip(codes, numbers, strict=True)
    ]
    summed = builder.sext(sum_up(builder.add, pairs), vector(I32, 2 * lanes))
    return _neighbours(builder, summed)


def sum_up(add: Callable[[Value, Value], Value], values: Sequence[Value]) -> Value:
    """The sum of values, added one after another."""
    total = values[0]
    for value in values[1:]:
        total = add(total, value)
    return total


def _neighbours(builder: ir.IRBuilder, values: Value) -> Value:
    """Sums [n] of the even and odd lanes of a vector [2 n]."""
    lanes = values.type.count // 2
    even, odd = (
        builder.shuffle_vector(values, values, ir.Constant(vector(I32, lanes), list(range(first, 2 * lanes, 2))))
        for first in (0, 1)
    )
    return builder.add(even, odd)


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: Sequence[Value]) -> Value:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)
