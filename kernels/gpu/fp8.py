"""E4M3, the 8-bit float of an FP8 cache (Micikevicius et al., arXiv 2209.05433), in integer arithmetic.

Triton converts it only on chips that have instructions for it, which an A100 lacks and where an MI300X has those of
another format (e4m3fnuz). Kernels see the cache as uint8 and convert here; nothing here knows of scales.

A code is s eeee mmm: (-1)^s * 2^(e - 7) * (1 + m / 8), or (-1)^s * 2^-6 * m / 8 where e is 0. There are no
infinities: s 1111 111 is NaN, so that the largest number is 448.
"""

import triton
import triton.language as tl

from kernels.gpu.launch import Target


def converts_e4m3(target: Target) -> bool:
    """Whether `target` has instructions that convert e4m3: what `decode_e4m3` is to be told."""
    return target.backend == "cuda" and int(target.arch) >= 89


@triton.jit
def encode_e4m3(x):
    """The codes (uint8) of float32 numbers: the nearest, ties to even, beyond 448 the code of 448; NaN stays NaN."""
    bits = x.to(tl.int32, bitcast=True)
    # The bits of magnitudes are ordered as the magnitudes are, infinity included and NaN above all.
    magnitude = bits & 0x7FFFFFFF
    clamped = tl.minimum(magnitude, 0x43E00000)
    # Of the 23 bits of mantissa 3 stay: adding just below half of the last, or half where that is odd, rounds to even.
    normal = ((clamped + 0x7FFFF + ((clamped >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    # Below 2^-6 codes count steps of 2^-9, which is what the last bit is worth in 2^14: the sum rounds to even.
    steps = (clamped.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(clamped < 0x3C800000, steps, normal)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def decode_e4m3(code, NATIVE: tl.constexpr):
    """The numbers (float16, which holds them all) of uint8 codes; `NATIVE` as `converts_e4m3` says."""
    if NATIVE:
        return code.to(tl.float8e4nv, bitcast=True).to(tl.float16)
    # Read as float16 the fields mean 2^-8 of what they are worth, subnormals too: only the exponent's bias differs.
    # Shifting the sign-extended code puts them in place, and the sign into bit 15 and, where it must go, bit 14.
    fields = (code.to(tl.int8, bitcast=True).to(tl.int16) << 7) & -0x4001
    raw = fields.to(tl.float16, bitcast=True)
    # 37376 * 1.75, which is 448's, is the largest that does not overflow: NaN's 1.875 becomes infinite, times 0 a NaN.
    return (raw * 37376.0) * 0.0 + raw * 256.0
