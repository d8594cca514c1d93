"""Vector arithmetic as LLVM instructions, for kernels that Numba's own vectoriser would compile badly.

Every function emits its instructions at the builder's position. A vector may have more lanes than a register; LLVM
then splits it.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir

from kernels.cpu.target import dot_path, features, register_floats

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
HALF = ir.HalfType()
Value: TypeAlias = Any
"""An `ir.Value`; llvmlite has no type annotations."""


class _Bfloat16(ir.Type):
    """LLVM's type of bfloat16 numbers, which llvmlite lacks."""

    def __str__(self) -> str:
        return "bfloat"


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


def like(value: Value, number: float) -> Value:
    """A constant of the type of `value`, a scalar or a vector, with `number` in every lane; floats are rounded."""
    element = value.type.element if isinstance(value.type, ir.VectorType) else value.type
    number = float(np.float32(number)) if element == F32 else number
    return ir.Constant(value.type, [number] * value.type.count if isinstance(value.type, ir.VectorType) else number)


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


def store_where(builder: ir.IRBuilder, values: Value, chosen: Sequence[bool], address: Value) -> None:
    """Store the `chosen` elements of a vector of i16 at their places from `address` on; nothing else is written."""
    place = builder.inttoptr(address, values.type.as_pointer())
    mask = ir.Constant(vector(ir.IntType(1), len(chosen)), list(map(int, chosen)))
    name = f"llvm.masked.store.v{len(chosen)}i16.p0"
    call(builder, name, ir.VoidType(), [values, place, ir.Constant(I32, 1), mask])


def at(builder: ir.IRBuilder, address: Value, offset: int) -> Value:
    """The address `offset` bytes behind another."""
    return builder.add(address, ir.Constant(address.type, offset))


def prefetch(builder: ir.IRBuilder, address: Value) -> None:
    """Begin to bring the cache line at `address` into the second-level cache."""
    reading, level, data = (ir.Constant(I32, number) for number in (0, 2, 1))
    place = builder.inttoptr(address, I8.as_pointer())
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [place, reading, level, data])


AHEAD = 16 * 1024
"""Bytes from what is read to what `prefetch_ahead` brings: a few pages, since a CPU's own prefetching ends at each."""


def prefetch_ahead(builder: ir.IRBuilder, address: Value, size: int) -> None:
    """Begin to bring `size` bytes that lie behind those that a long row of reads has come to, at `address`."""
    for line in range(0, size, 64):
        prefetch(builder, at(builder, address, AHEAD + line))


def repeat(
    builder: ir.IRBuilder, count: Value, initial: Sequence[Value], body: Callable[[Value, list[Value]], Sequence[Value]]
) -> list[Value]:
    """A loop of `count` rounds, at least one, that carries values from round to round, and returns the last ones.

    The first round's values are `initial`; `body` takes a round's index and values, and returns the next round's.
    """
    before, inside, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.branch(inside)
    builder.position_at_end(inside)
    index = builder.phi(count.type)
    values = [builder.phi(value.type) for value in initial]
    following = list(body(index, values))
    increased = builder.add(index, ir.Constant(count.type, 1))
    index.add_incoming(ir.Constant(count.type, 0), before)
    index.add_incoming(increased, builder.block)
    for value, first, later in zip(values, initial, following, strict=True):
        value.add_incoming(first, before)
        value.add_incoming(later, builder.block)
    builder.cbranch(builder.icmp_signed("<", increased, count), inside, after)
    builder.position_at_end(after)
    return following


def fma(builder: ir.IRBuilder, a: Value, b: Value, c: Value) -> Value:
    """The number a * b + c of float32, scalars or vectors, rounded once if the CPU has such an instruction."""
    return call(builder, f"llvm.fmuladd.{_suffix(a)}", a.type, [a, b, c])


def rounded(builder: ir.IRBuilder, x: Value) -> Value:
    """The float32 x, a scalar or a vector, as it was rounded: LLVM may not cancel it in sums that it reorders."""
    return call(builder, f"llvm.arithmetic.fence.{_suffix(x)}", x.type, [x])


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


def to_bfloat16(builder: ir.IRBuilder, numbers: Value) -> Value:
    """The bits, i16 [lanes], of the bfloat16 numbers nearest to float32 numbers; a NaN stays one."""
    lanes = numbers.type.count
    if "avx512bf16" in features():
        return builder.bitcast(builder.fptrunc(numbers, vector(_Bfloat16(), lanes)), vector(I16, lanes))
    # LLVM's own way without the instruction is a call for every number.
    bits = builder.bitcast(numbers, vector(I32, lanes))
    nearest = builder.lshr(builder.add(bits, like(bits, 0x8000)), like(bits, 16))
    # Rounding could carry the bits of a NaN into the sign, so a NaN gets fixed bits.
    unknown = builder.fcmp_unordered("uno", numbers, numbers)
    return builder.trunc(builder.select(unknown, like(bits, 0x7FC0), nearest), vector(I16, lanes))


def split(builder: ir.IRBuilder, numbers: Value) -> tuple[Value, Value]:
    """The bits, i16 [lanes], of two bfloat16 numbers for each float32: the nearest one, and the nearest to the rest.

    Their sum has a relative error of up to 2^-17.
    """
    upper = to_bfloat16(builder, numbers)
    wide = vector(I32, numbers.type.count)
    near = builder.bitcast(builder.shl(builder.zext(upper, wide), filled(I32, wide.count, 16)), numbers.type)
    return upper, to_bfloat16(builder, builder.fsub(numbers, near))


def add_pairs(builder: ir.IRBuilder, a: Value, b: Value) -> Value:
    """Products of a and b, i16 [2 n], with neighbours added: i32 [n]."""
    lanes = a.type.count // 2
    if dot_path() != "portable" and lanes == register_floats():
        name = "llvm.x86.avx2.pmadd.wd" if lanes == 8 else "llvm.x86.avx512.pmaddw.d.512"
        return call(builder, name, vector(I32, lanes), [a, b])
    wide = vector(I32, 2 * lanes)
    return _neighbours(builder, builder.mul(builder.sext(a, wide), builder.sext(b, wide)))


def sums_any_quads() -> bool:
    """Whether `add_quads` has an instruction whose sums have 32 bits from the beginning."""
    return dot_path().endswith("vnni")


def add_quads(builder: ir.IRBuilder, codes: Sequence[Value], numbers: Sequence[Value]) -> Value:
    """Products of codes, each u8 [4 n], and numbers, each i8 [4 n], summed in fours and over all vectors: i32 [n].

    Unless `sums_any_quads`, the sum of two neighbouring products over all vectors must fit into an i16, as for eight
    vectors of 4-bit codes.
    """
    lanes = codes[0].type.count // 4
    whole = lanes == register_floats()
    if whole and sums_any_quads():
        total = filled(I32, lanes, 0)
        for a, b in zip(codes, numbers, strict=True):
            total = call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", total.type, [total, a, b])
        return total
    if whole and dot_path() == "avx2":
        pairs = [
            call(builder, "llvm.x86.avx2.pmadd.ub.sw", vector(I16, 2 * lanes), [a, b])
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


def rint(builder: ir.IRBuilder, x: Value) -> Value:
    """The integers nearest to float32 numbers, ties to even, as float32."""
    return call(builder, f"llvm.rint.{_suffix(x)}", x.type, [x])


def exp(builder: ir.IRBuilder, x: Value) -> Value:
    """e^x of float32, a scalar or a vector, to 2 units in the last place; 0 for x up to -87.3, and NaN for NaN.

    x is split into n ln 2 + r, and e^r is the polynomial of Cephes' expf (Moshier, 1992; public domain).
    """
    lowest = like(x, -87.3)
    bounded = smaller(builder, larger(builder, x, lowest), like(x, 88.7))
    n = rint(builder, builder.fmul(bounded, like(x, 1.4426950408889634)))
    p = exp_fraction(builder, bounded, n)
    exponent = builder.fptosi(n, vector(I32, x.type.count) if isinstance(x.type, ir.VectorType) else I32)
    power = builder.shl(builder.add(exponent, like(exponent, 127)), like(exponent, 23))
    # Both comparisons are false for a NaN, which is returned itself.
    rest = builder.select(builder.fcmp_ordered("<=", x, lowest), like(x, 0), x)
    return builder.select(builder.fcmp_ordered(">", x, lowest), builder.fmul(p, builder.bitcast(power, x.type)), rest)


def exp_fraction(builder: ir.IRBuilder, x: Value, n: Value) -> Value:
    """e^(x - n ln 2) of float32, a scalar or a vector, where n is the integer nearest to x / ln 2."""
    # ln 2 in two parts; n times the first one, which has few bits, is exact.
    r = fma(builder, n, like(x, 2.12194440e-4), fma(builder, n, like(x, -0.693359375), x))
    p = like(x, 1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fma(builder, p, r, like(x, coefficient))
    return builder.fadd(fma(builder, builder.fmul(p, r), r, r), like(x, 1))


def fraction(builder: ir.IRBuilder, x: Value) -> Value:
    """The fraction x - floor(x) of float32 [lanes], by AVX-512's instruction for it."""
    lanes = x.type.count
    if lanes < 16:
        return lanes_from(builder, fraction(builder, lanes_from(builder, x, 0, 16)), 0, lanes)
    downwards, mask, current = ir.Constant(I32, 9), ir.Constant(I16, -1), ir.Constant(I32, 4)
    return call(builder, "llvm.x86.avx512.mask.reduce.ps.512", x.type, [x, downwards, x, mask, current])


def times_power(builder: ir.IRBuilder, x: Value, n: Value) -> Value:
    """The product x 2^floor(n) of float32 [lanes], by AVX-512's instruction for it."""
    lanes = x.type.count
    if lanes < 16:
        wide = [lanes_from(builder, numbers, 0, 16) for numbers in (x, n)]
        return lanes_from(builder, times_power(builder, *wide), 0, lanes)
    mask, current = ir.Constant(I16, -1), ir.Constant(I32, 4)
    return call(builder, "llvm.x86.avx512.mask.scalef.ps.512", x.type, [x, n, x, mask, current])


def log(builder: ir.IRBuilder, x: Value) -> Value:
    """The natural logarithm of float32, a scalar or a vector, of normal positive numbers, to a few last places.

    x is split into 2^n m with m near 1, and ln m is the polynomial of Cephes' logf (Moshier, 1992; public domain).
    """
    bits = builder.bitcast(x, vector(I32, x.type.count) if isinstance(x.type, ir.VectorType) else I32)
    half = builder.or_(builder.and_(bits, like(bits, 0x7FFFFF)), like(bits, 0x3F000000))
    m = builder.bitcast(half, x.type)
    small = builder.fcmp_ordered("<", m, like(x, 0.707106781186547524))
    exponent = builder.sub(builder.lshr(bits, like(bits, 23)), like(bits, 126))
    n = builder.sitofp(builder.select(small, builder.sub(exponent, like(bits, 1)), exponent), x.type)
    m = builder.fsub(builder.select(small, builder.fadd(m, m), m), like(x, 1))
    square = builder.fmul(m, m)
    p = like(x, 7.0376836292e-2)
    for coefficient in (
        *(-1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
        *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
    ):
        p = fma(builder, p, m, like(x, coefficient))
    y = fma(builder, n, like(x, -2.12194440e-4), builder.fmul(builder.fmul(p, m), square))
    y = builder.fadd(m, fma(builder, square, like(x, -0.5), y))
    return fma(builder, n, like(x, 0.693359375), y)


def tanh(builder: ir.IRBuilder, x: Value) -> Value:
    """Hyperbolic tangent of float32, a scalar or a vector, computed as (e^2x - 1) / (e^2x + 1); NaN for NaN."""
    bounded = smaller(builder, larger(builder, x, like(x, -10)), like(x, 10))
    grown = exp(builder, builder.fadd(bounded, bounded))
    quotient = builder.fdiv(builder.fsub(grown, like(x, 1)), builder.fadd(grown, like(x, 1)))
    return builder.select(builder.fcmp_unordered("uno", x, x), x, quotient)


def larger(builder: ir.IRBuilder, a: Value, b: Value) -> Value:
    """The larger of two float32 numbers, lane by lane; b where either is a NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def smaller(builder: ir.IRBuilder, a: Value, b: Value) -> Value:
    """The smaller of two float32 numbers, lane by lane; b where either is a NaN."""
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def across(builder: ir.IRBuilder, combine: Callable[[Value, Value], Value], values: Value) -> Value:
    """The lanes of a vector, a power of two of them, combined into one value: one half with the other, and so on."""
    while values.type.count > 1:
        half = values.type.count // 2
        values = combine(lanes_from(builder, values, 0, half), lanes_from(builder, values, half, half))
    return builder.extract_element(values, ir.Constant(I32, 0))


def lanes_from(builder: ir.IRBuilder, values: Value, first: int, count: int) -> Value:
    """The `count` lanes from `first` on; those behind the last lane are 0."""
    places = [min(lane, values.type.count) for lane in range(first, first + count)]
    return builder.shuffle_vector(values, like(values, 0), ir.Constant(vector(I32, count), places))


def transpose(builder: ir.IRBuilder, rows: Sequence[Value]) -> list[Value]:
    """The columns of a square matrix that is given by its rows: n vectors of n lanes, where n is a power of two.

    The two numbers off the diagonal of each square of 2 by 2 numbers change places; then the two squares off the
    diagonal of each square of 2 by 2 such squares, and so on.
    """
    lanes = len(rows)
    done = list(rows)
    width = 1
    while width < lanes:
        upper = [lanes + lane - width if lane & width else lane for lane in range(lanes)]
        lower = [lanes + lane if lane & width else lane + width for lane in range(lanes)]
        for first in range(lanes):
            if not first & width:
                pair = done[first], done[first + width]
                done[first], done[first + width] = (
                    builder.shuffle_vector(*pair, ir.Constant(vector(I32, lanes), places)) for places in (upper, lower)
                )
        width *= 2
    return done


def interleave(builder: ir.IRBuilder, a: Value, b: Value) -> tuple[Value, Value]:
    """The numbers of two vectors in turns: those of their lower halves, and those of their upper halves."""
    lanes = a.type.count
    places = [lane + other for lane in range(lanes) for other in (0, lanes)]
    return _two(builder, a, b, places[:lanes], places[lanes:])


def separate(builder: ir.IRBuilder, a: Value, b: Value) -> tuple[Value, Value]:
    """The two vectors that `interleave` makes a and b of."""
    lanes = a.type.count
    return _two(builder, a, b, list(range(0, 2 * lanes, 2)), list(range(1, 2 * lanes, 2)))


def _two(builder: ir.IRBuilder, a: Value, b: Value, first: list[int], second: list[int]) -> tuple[Value, Value]:
    """Two vectors of lanes of a and b."""
    kind = vector(I32, a.type.count)
    return tuple(builder.shuffle_vector(a, b, ir.Constant(kind, places)) for places in (first, second))


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


def _suffix(x: Value) -> str:
    """The name of a float32 type at the end of an intrinsic's name."""
    return f"v{x.type.count}f32" if isinstance(x.type, ir.VectorType) else "f32"


def call(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: Sequence[Value]) -> Value:
    """Call LLVM's intrinsic function `name`, whose result has the type `result`."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)
