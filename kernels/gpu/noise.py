"""The random numbers of a draw, as functions of (the row's seed, its counter, the token id) alone.

`kernels/reference_sampling.py` defines them; the bits here are the same.
"""

import triton
import triton.language as tl


@triton.jit
def exponentials(u):
    """-ln(1 - u) in the shape of `u`, to the last bit or two, for small u as well.

    y = 1 - u is rounded, and u - (1 - y) is exactly its rounding error.
    """
    y = 1.0 - u  # Shape of u.
    return (u - (1.0 - y)) - tl.log(y)


@triton.jit
def uniforms(key, tokens):
    """(x + 0.5) / 2^32, clamped below 1, where x is a 32-bit hash of key and token, in the shape of `tokens`.

    The bits equal those of `kernels.reference_sampling.uniforms`.
    """
    x = tokens.to(tl.uint32) ^ key.to(tl.uint32)  # Shape of tokens.
    x = hash_32(x) ^ (key >> 32).to(tl.uint32)
    u = (hash_32(x).to(tl.float32) + 0.5) * (1.0 / 4294967296.0)
    return tl.minimum(u, 1.0 - 1.0 / 16777216.0)


@triton.jit
def hash_32(x):
    """The bijection of `kernels.reference_sampling.hash_32` on uint32 values, in the shape of `x`."""
    x = tl.mul(x ^ (x >> 16), 0x21F0AAAD, sanitize_overflow=False)
    x = tl.mul(x ^ (x >> 15), 0xD35A2D97, sanitize_overflow=False)
    return x ^ (x >> 15)


@triton.jit
def stream_key(seed, counter):
    """Output number `counter` of SplitMix64 started at a hash of `seed`: a uint64 scalar.

    The bits equal those of `kernels.reference_sampling.stream_keys`.
    """
    increment: tl.constexpr = 0x9E3779B97F4A7C15
    start = hash_64(seed.to(tl.uint64) + increment)
    return hash_64(start + (counter.to(tl.uint64) + 1) * increment)


@triton.jit
def hash_64(x):
    """SplitMix64's output function on a uint64 scalar, as `kernels.reference_sampling.hash_64`."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
