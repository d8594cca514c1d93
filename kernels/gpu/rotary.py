"""Head norms, rotary embedding, and storing keys and values in the paged cache, in one kernel.

These are the steps between the projection to queries, keys and values and the attention.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import HeadNorms, LayerCache, Rotation
from kernels.gpu.dependent import wait_for_kernels_before
from kernels.gpu.fp8 import encode_e4m3
from kernels.gpu.launch import Launcher


def rotate_and_store(
    launch: Launcher,
    qkv: Tensor,
    heads: int,
    norms: HeadNorms | None,
    rotation: Rotation | None,
    cache: LayerCache,
    slots: Tensor,
) -> Tensor:
    """See `Backend.rotate_and_store`. The cache's tensors must be contiguous."""
    tokens = qkv.shape[0]
    kv_heads, head_dim = cache.keys.shape[2:]
    q = torch.empty(tokens, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    padded = triton.next_power_of_2(head_dim)
    block = min(max(1, 1024 // padded), triton.next_power_of_2(heads))
    launch(
        rotate_and_store_heads,
        (tokens, triton.cdiv(heads, block) + 2 * triton.cdiv(kv_heads, block)),
        qkv.contiguous(),
        None if norms is None else norms.query,
        None if norms is None else norms.key,
        0.0 if norms is None else norms.eps,
        None if rotation is None else rotation.cos,
        None if rotation is None else rotation.sin,
        slots,
        q,
        _stored(cache.keys),
        _stored(cache.values),
        cache.key_scales,
        cache.value_scales,
        # Each thread handles a 16-byte vector of a and another of b (see `carry_heads`) in the 16-bit dtypes.
        num_warps=max(1, block * padded // (16 * launch.target.warp_size)),
        num_stages=1,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        HALF=head_dim // 2 if rotation is None else rotation.cos.shape[1],
        BLOCK_HEADS=block,
        DEPENDENT=launch.dependent,
    )
    return q


def _stored(cached: Tensor) -> Tensor:
    """The tensor as the kernel takes it: FP8 as uint8."""
    return cached.view(torch.uint8) if cached.dtype == torch.float8_e4m3fn else cached


@triton.jit
def rotate_and_store_heads(
    qkv,
    query_norm,
    key_norm,
    eps,
    cos,
    sin,
    slots,
    q,
    keys,
    values,
    key_scales,
    value_scales,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """`q = rotate(norm(queries))`, `keys[slot] = rotate(norm(keys))`, `values[slot] = values` for each token of `qkv`.

    The grid is (tokens, blocks), where a block is BLOCK_HEADS heads of one token: first the blocks of query heads, then
    those of key heads, then those of value heads. The steps are defined in `carry_heads`.

    `qkv` is [tokens, (HEADS + 2 KV_HEADS) * HEAD_DIM], `q` [tokens, HEADS, HEAD_DIM], `cos` and `sin` [tokens, HALF],
    `slots` [tokens], and `keys` and `values` [slots of the cache, KV_HEADS, HEAD_DIM].
    """
    wait_for_kernels_before(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    query_blocks: tl.constexpr = (HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    kv_blocks: tl.constexpr = (KV_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    queries = qkv + token * ((HEADS + 2 * KV_HEADS) * HEAD_DIM)
    if cos is not None:
        cos += token * HALF
        sin += token * HALF
    if block < query_blocks:
        head = block * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)  # [BLOCK_HEADS]
        target = q + token * (HEADS * HEAD_DIM)
        carry_heads(queries, target, head, HEADS, query_norm, eps, cos, sin, None, HEAD_DIM, HALF)
    else:
        slot = tl.load(slots + token).to(tl.int64)
        if slot >= 0:
            at = slot * (KV_HEADS * HEAD_DIM)
            source = queries + HEADS * HEAD_DIM
            if block < query_blocks + kv_blocks:
                head = (block - query_blocks) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)  # [BLOCK_HEADS]
                carry_heads(source, keys + at, head, KV_HEADS, key_norm, eps, cos, sin, key_scales, HEAD_DIM, HALF)
            else:
                head = (block - query_blocks - kv_blocks) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)  # [BLOCK_HEADS]
                source += KV_HEADS * HEAD_DIM
                carry_heads(
                    source, values + at, head, KV_HEADS, None, eps, None, None, value_scales, HEAD_DIM, HEAD_DIM // 2
                )


@triton.jit
def carry_heads(
    source,
    target,
    head,
    count,
    weight,
    eps,
    cos,
    sin,
    scales,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
):
    """target[head] = rotate(norm(source[head])) for the heads `head` [BLOCK_HEADS] that are below `count`.

    `source` and `target` are [count, HEAD_DIM]. The steps on one head x are:

    - RMS norm: x = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv 1910.07467);
    - rotation: (a, b) = (a cos - b sin, b cos + a sin), where a is the first HALF dimensions, b the next HALF, and
      the rest c is not rotated (Su et al., arXiv 2104.09864);
    - storing: x, or x / scale in e4m3 if there are `scales` [count].

    Norm and rotation are left out if their arguments are None. Each rounds its result to the dtype of `source`.
    In shapes below, PAIRS and REST are HALF and HEAD_DIM - 2 * HALF rounded up to powers of two.
    """
    rest: tl.constexpr = HEAD_DIM - 2 * HALF
    pair = tl.arange(0, triton.next_power_of_2(HALF))[None, :]  # [1, PAIRS]
    pair_at = head[:, None] * HEAD_DIM + pair  # [BLOCK_HEADS, PAIRS]
    pair_held = (head < count)[:, None] & (pair < HALF)  # [BLOCK_HEADS, PAIRS]
    a = tl.load(source + pair_at, mask=pair_held, other=0.0).to(tl.float32)  # [BLOCK_HEADS, PAIRS]
    b = tl.load(source + pair_at + HALF, mask=pair_held, other=0.0).to(tl.float32)  # [BLOCK_HEADS, PAIRS]
    if rest > 0:
        left = 2 * HALF + tl.arange(0, triton.next_power_of_2(rest))[None, :]  # [1, REST]
        left_at = head[:, None] * HEAD_DIM + left  # [BLOCK_HEADS, REST]
        left_held = (head < count)[:, None] & (left < HEAD_DIM)  # [BLOCK_HEADS, REST]
        c = tl.load(source + left_at, mask=left_held, other=0.0).to(tl.float32)  # [BLOCK_HEADS, REST]

    if weight is not None:
        squares = tl.sum(a * a + b * b, 1)  # [BLOCK_HEADS]
        if rest > 0:
            squares += tl.sum(c * c, 1)
        norm = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]  # [BLOCK_HEADS, 1]
        a = rounded(a * norm * tl.load(weight + pair, mask=pair < HALF, other=0.0), source)
        b = rounded(b * norm * tl.load(weight + HALF + pair, mask=pair < HALF, other=0.0), source)
        if rest > 0:
            c = rounded(c * norm * tl.load(weight + left, mask=left < HEAD_DIM, other=0.0), source)

    if cos is not None:
        cosine = tl.load(cos + pair, mask=pair < HALF, other=0.0)  # [1, PAIRS]
        sine = tl.load(sin + pair, mask=pair < HALF, other=0.0)  # [1, PAIRS]
        turned = rounded(a * cosine - b * sine, source)  # [BLOCK_HEADS, PAIRS]
        b = rounded(b * cosine + a * sine, source)
        a = turned

    store_heads(target + pair_at, a, pair_held, scales, head, count)
    store_heads(target + pair_at + HALF, b, pair_held, scales, head, count)
    if rest > 0:
        store_heads(target + left_at, c, left_held, scales, head, count)


@triton.jit
def store_heads(target, x, held, scales, head, count):
    """Store `x` [BLOCK_HEADS, D] at the pointers `target` where `held`; x / scale in e4m3 if there are `scales`."""
    if scales is None:
        tl.store(target, x.to(target.dtype.element_ty), mask=held)
    else:
        scale = tl.load(scales + head, mask=head < count, other=1.0)  # [BLOCK_HEADS]
        tl.store(target, encode_e4m3(tl.div_rn(x, scale[:, None])), mask=held)


@triton.jit
def rounded(x, like):
    """`x` rounded to the dtype that `like` points to, as float32, in the shape of `x`."""
    return x.to(like.dtype.element_ty).to(tl.float32)
