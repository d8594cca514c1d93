"""E4M3, the 8-bit float of an FP8 cache (Micikevicius et al., arXiv 2209.05433), in integer arithmetic.

Triton converts E4M3 only on chips with instructions for it. An A100 has none, and an MI300X has instructions for
another format (e4m3fnuz). Kernels therefore treat the cache as uint8 and convert codes here. Scales are applied by the
caller.

A code has the bits s eeee mmm. Its value is (-1)^s * 2^(e - 7) * (1 + m / 8), or (-1)^s * 2^-6 * m / 8 if e is 0.
There are no infinities; s 1111 111 is NaN, so the largest number is 448.
"""

import triton
import triton.language as tl

from kernels.gpu.launch import Target

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether there is no machine for instructions in assembly."""


def converts_e4m3(target: Target) -> bool:
    """Whether `target` has instructions that convert e4m3: the NATIVE argument of `decode_e4m3`."""
    return target.backend == "cuda" and int(target.arch) >= 89


@triton.jit
def encode_e4m3(x):
    """The e4m3 codes (uint8) nearest to float32 numbers, in any shape; ties go to even.

    Magnitudes above 448 become 448. NaN stays NaN.
    """
    bits = x.to(tl.int32, bitcast=True)  # Shape of x, like everything below.
    # As integers, the bits of magnitudes have the same order as the magnitudes; infinity and then NaN come last.
    magnitude = bits & 0x7FFFFFFF
    clamped = tl.minimum(magnitude, 0x43E00000)
    # The mantissa is rounded from 23 bits to 3. Adding half of the last kept bit, less 1 if that bit is even, rounds
    # ties to even.
    normal = ((clamped + 0x7FFFF + ((clamped >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    # Codes below 2^-6 count steps of 2^-9. The last bit of a float32 near 2^14 is one such step, so adding 2^14 rounds
    # to whole steps, ties to even.
    steps = (clamped.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(clamped < 0x3C800000, steps, normal)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def decode_e4m3(code, NATIVE: tl.constexpr):
    """The float16 values of uint8 e4m3 codes, in any shape; float16 represents them all exactly.

    NATIVE is the result of `converts_e4m3`.
    """
    if NATIVE:
        return code.to(tl.float8e4nv, bitcast=True).to(tl.float16)
    # Exponent and mantissa placed into the fields of a float16 give 2^-8 of the value, also for subnormals, since only
    # the exponent bias differs. Shifting the sign-extended code by 7 puts the sign into bits 15 and 14; the mask clears
    # bit 14.
    fields = (code.to(tl.int8, bitcast=True).to(tl.int16) << 7) & -0x4001  # Shape of code.
    raw = fields.to(tl.float16, bitcast=True)  # Shape of code.
    # 448 is stored as 1.75, and 37376 * 1.75 is still finite. NaN is stored as 1.875: 37376 * 1.875 overflows to
    # infinity, and infinity times 0 is NaN.
    return (raw * 37376.0) * 0.0 + raw * 256.0


@triton.jit
def decode_e4m3_pairs(codes, NATIVE: tl.constexpr):
    """The float16 values of the two e4m3 codes in each int16, in any shape: those of the low bytes, then of the high.

    NATIVE is the result of `converts_e4m3`.
    """
    if NATIVE and not _INTERPRETED:
        # A register holds two of `codes`. Triton's own cast takes the codes apart into four registers and packs them
        # again, which takes more instructions than all else in a tile of keys.
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 codes;
            .reg .b16 low, high;
            prmt.b32 codes, $2, 0, 0x3120;
            mov.b32 {low, high}, codes;
            cvt.rn.f16x2.e4m3x2 $0, low;
            cvt.rn.f16x2.e4m3x2 $1, high;
            }
            """,
            "=r,=r,r",
            [codes],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    else:
        low, high = codes.to(tl.uint8), (codes >> 8).to(tl.uint8)
        return decode_e4m3(low, NATIVE), decode_e4m3(high, NATIVE)
