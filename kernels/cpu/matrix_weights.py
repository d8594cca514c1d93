"""Weights of a panel as bfloat16 numbers, as the matrix unit wants them, in LLVM instructions.

Weights of 4 and 8 bits become float16 numbers first, of which a register holds 32: a code, moved to the higher bits of
a fraction, is a float16 number below all normal ones, and one fused multiplication makes the weight of it. A float16
number becomes a bfloat16 number when its bits are moved, by rounding, and its exponent gets another bias.
"""

from collections.abc import Iterator

from llvmlite import ir

from kernels.cpu import vectors as v
from kernels.cpu.panels import CODE_SHIFTS, LANES, Format
from kernels.cpu.target import features
from kernels.cpu.tile import load_offsets

WIDE = 2 * LANES
"""Float16 numbers in a register."""
HALF_BIAS, HALF_FRACTION, BFLOAT16_BIAS, BFLOAT16_FRACTION = 15, 10, 127, 7
"""The bias of the exponent, and the bits of the fraction, of both kinds of numbers."""


def mix(builder: ir.IRBuilder, inputs: v.Value) -> v.Value:
    """Inputs [DEPTH] of a step in the order in which weights of 4 bits are paired."""
    lanes = inputs.type.count
    places = [4 * (place // 4) + (0, 2, 1, 3)[place % 4] for place in range(lanes)]
    return builder.shuffle_vector(inputs, inputs, ir.Constant(v.vector(v.I32, lanes), places))


def unpacked(builder: ir.IRBuilder, form: Format, at: v.Value, exponent: v.Value) -> Iterator[v.Value]:
    """The weights of a group: for every two inputs, pairs of bfloat16 numbers of each output, in 64 bytes.

    Inputs of 4-bit weights are paired as `mix` orders them. Each pair is made when it is asked for, so that few of them
    need registers at a time. `exponent` is that of `Panels`.
    """
    if form.bits == 16:
        kind = v.vector(v.I16, LANES)
        for k in range(0, form.group, 2):
            yield _beside(builder, *[v.load(builder, kind, at, 2 * LANES * i) for i in (k, k + 1)])
    elif form.offsets == 4 or "avx512fp16" not in features():
        yield from _through_floats(builder, form, at)
    else:
        yield from _through_halves(builder, form, at, exponent)


def _through_halves(builder: ir.IRBuilder, form: Format, at: v.Value, exponent: v.Value) -> Iterator[v.Value]:
    scale = v.halves_to_floats(builder, v.load(builder, v.vector(v.I16, LANES), at, form.codes_bytes))
    factor = _power(builder, exponent)
    # Codes are 2^shift times the least float16 number, 2^-24.
    slope = builder.fmul(scale, builder.fmul(factor, v.like(factor, 2.0 ** (24 - CODE_SHIFTS[form.bits]))))
    # Signed codes have had their highest bit inverted, which adds 2^(bits - 1).
    offset = (
        load_offsets(builder, form, at)
        if form.offsets
        else builder.fmul(scale, v.like(scale, -(2.0 ** (form.bits - 1))))
    )
    slopes, intercepts = (_twice(builder, number) for number in (slope, builder.fmul(offset, factor)))
    moved = builder.sub(ir.Constant(v.I64, BFLOAT16_BIAS - HALF_BIAS), exponent)
    bias = v.splat(builder, builder.shl(builder.trunc(moved, v.I16), ir.Constant(v.I16, BFLOAT16_FRACTION)), WIDE)
    for code in _nibbles(builder, form, at) if form.bits == 4 else _bytes(builder, form, at):
        arguments = [builder.bitcast(code, slopes.type), slopes, intercepts]
        number = v.call(builder, f"llvm.fma.v{WIDE}f16", slopes.type, arguments)
        yield builder.bitcast(_to_bfloat16(builder, number, bias), v.vector(v.I32, LANES))


def _power(builder: ir.IRBuilder, exponent: v.Value) -> v.Value:
    """2 to the power of an i64, as float32 [LANES]."""
    bits = builder.shl(builder.add(exponent, ir.Constant(v.I64, 127)), ir.Constant(v.I64, 23))
    return v.splat(builder, builder.bitcast(builder.trunc(bits, v.I32), v.F32), LANES)


def _twice(builder: ir.IRBuilder, numbers: v.Value) -> v.Value:
    """Float32 numbers [LANES] as float16 [WIDE], each of them twice."""
    halves = builder.fptrunc(numbers, v.vector(v.HALF, LANES))
    places = [lane // 2 for lane in range(WIDE)]
    return builder.shuffle_vector(halves, halves, ir.Constant(v.vector(v.I32, WIDE), places))


def _to_bfloat16(builder: ir.IRBuilder, numbers: v.Value, bias: v.Value) -> v.Value:
    """The bits of bfloat16 numbers near finite float16 numbers, whose exponents' bias grows by `bias`, i16 [WIDE].

    Rounding is to the nearest, and numbers below the normal float16 numbers become others of this size.
    """
    bits = builder.bitcast(numbers, bias.type)
    distance = HALF_FRACTION - BFLOAT16_FRACTION
    factor = v.like(bits, 1 << (15 - distance))
    # Multiplies, and divides by 2^15 with rounding: a shift that rounds.
    rounded = v.call(builder, "llvm.x86.avx512.pmul.hr.sw.512", bits.type, [bits, factor])
    # The sign has been copied to the bits behind it.
    copies = ((1 << distance) - 1) << (15 - distance)
    return builder.add(builder.and_(rounded, v.like(bits, 0xFFFF ^ copies)), bias)


def _nibbles(builder: ir.IRBuilder, form: Format, at: v.Value) -> Iterator[v.Value]:
    """A group's 4-bit codes as fractions, i16 [WIDE] for each pair of inputs."""
    loaded = [v.load(builder, v.vector(v.I16, WIDE), at, 2 * WIDE * index) for index in range(form.group // 8)]
    for half in (0, 4):
        for words in loaded:
            for place in (half, half + 8):
                yield builder.and_(_moved(builder, words, CODE_SHIFTS[4] - place), v.like(words, 15 << CODE_SHIFTS[4]))


def _bytes(builder: ir.IRBuilder, form: Format, at: v.Value) -> Iterator[v.Value]:
    """A group's 8-bit codes as fractions, plus 128 if they are signed, i16 [WIDE] for each pair of inputs."""
    inverted = 0 if form.offsets else 128
    for index in range(form.group // 2):
        codes = v.load(builder, v.vector(v.I8, WIDE), at, WIDE * index)
        wide = builder.zext(builder.xor(codes, v.like(codes, inverted)), v.vector(v.I16, WIDE))
        yield _moved(builder, wide, CODE_SHIFTS[8])


def _moved(builder: ir.IRBuilder, words: v.Value, shift: int) -> v.Value:
    """Words shifted to the left, or to the right by a negative number."""
    if shift < 0:
        return builder.lshr(words, v.like(words, -shift))
    return builder.shl(words, v.like(words, shift))


def _beside(builder: ir.IRBuilder, a: v.Value, b: v.Value) -> v.Value:
    """The words i16 [WIDE] of two vectors in turns."""
    lanes = a.type.count
    places = [lane + other for lane in range(lanes) for other in (0, lanes)]
    return builder.shuffle_vector(a, b, ir.Constant(v.vector(v.I32, 2 * lanes), places))


def _through_floats(builder: ir.IRBuilder, form: Format, at: v.Value) -> Iterator[v.Value]:
    slope, intercept = _line(builder, form, at)
    codes = _nibble_floats(builder, form, at) if form.bits == 4 else _byte_floats(builder, form, at)
    numbers = (builder.bitcast(v.fma(builder, code, slope, intercept), v.vector(v.I32, LANES)) for code in codes)
    for a, b in zip(numbers, numbers, strict=True):
        yield builder.or_(builder.lshr(a, v.like(a, 16)), builder.and_(b, v.like(b, -(1 << 16))))


def _line(builder: ir.IRBuilder, form: Format, at: v.Value) -> tuple[v.Value, v.Value]:
    """The slopes and intercepts, float32 [LANES], of a group's weights as a function of t = 1 + code / 2^bits.

    Both are larger by a small factor, since the lower half of a weight's bits is cut off: on average the factor makes
    up for it, and it changes no weight that is a bfloat16 number.
    """
    kind = v.vector(v.I16, LANES)
    scale = v.halves_to_floats(builder, v.load(builder, kind, at, form.codes_bytes))
    slope = builder.fmul(scale, v.like(scale, 2**form.bits))
    if form.offsets:
        intercept = builder.fsub(load_offsets(builder, form, at), slope)
    else:
        # Signed codes have had their highest bit inverted, which adds 2^(bits - 1).
        intercept = builder.fmul(scale, v.like(scale, -(2.0**form.bits) - 2.0 ** (form.bits - 1)))
    factor = v.like(scale, 1 + 0.7 * 2.0**-8)
    return builder.fmul(slope, factor), builder.fmul(intercept, factor)


ONE = 0x3F800000
"""The bits of 1.0 in float32. A code in the highest bits of the fraction makes the number 1 + code / 2^bits."""


def _nibble_floats(builder: ir.IRBuilder, form: Format, at: v.Value) -> Iterator[v.Value]:
    """1 + code / 16 of a group's 4-bit codes: float32 [LANES] for every input."""
    for half in (0, 4):
        for index in range(form.group // 8):
            quads = v.load(builder, v.vector(v.I32, LANES), at, 4 * LANES * index)
            for j in (0, 2, 1, 3):
                yield _fraction(builder, quads, 4, 8 * j + half, ONE)


def _byte_floats(builder: ir.IRBuilder, form: Format, at: v.Value) -> Iterator[v.Value]:
    """1 + code / 256 of a group's 8-bit codes, plus 128 if they are signed: float32 [LANES] for every input."""
    one = ONE if form.offsets else ONE | 1 << 22
    for index in range(form.group // 2):
        pairs = v.load(builder, v.vector(v.I16, LANES), at, 2 * LANES * index)
        for j in range(2):
            yield _fraction(builder, builder.zext(pairs, v.vector(v.I32, LANES)), 8, 8 * j, one)


def _fraction(builder: ir.IRBuilder, words: v.Value, bits: int, place: int, one: int) -> v.Value:
    """Float32 numbers with the bits `one`, exclusive-or `bits` bits of i32 words, from bit `place` on, as fraction."""
    shift = 23 - bits - place
    moved = builder.shl(words, v.like(words, shift)) if shift >= 0 else builder.lshr(words, v.like(words, -shift))
    fraction = builder.and_(moved, v.like(words, ((1 << bits) - 1) << (23 - bits)))
    return builder.bitcast(builder.xor(fraction, v.like(words, one)), v.vector(v.F32, LANES))
