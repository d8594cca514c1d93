"""RMS norm and layer norm, each fused with the addition to the residual stream that comes before it.

One program computes one row, which it reads and writes once. A row's result depends on no other row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.dependent import wait_for_kernels_before
from kernels.gpu.launch import Launcher


def add_rms_norm(
    launch: Launcher, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `Backend.add_rms_norm`. `x` and `residual` may have any shape [..., size]."""
    return _add_norm(launch, x, residual, weight, None, eps)


def add_layer_norm(
    launch: Launcher, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `Backend.add_layer_norm`. `x` and `residual` may have any shape [..., size]."""
    return _add_norm(launch, x, residual, weight, bias, eps)


def _add_norm(
    launch: Launcher, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    size = x.shape[-1]
    normed = torch.empty_like(x)
    stream = x if residual is None else torch.empty_like(x)
    block = triton.next_power_of_2(size)
    launch(
        add_norm_rows,
        (x.shape[:-1].numel(),),
        x,
        None if residual is None else residual.contiguous(),
        weight,
        bias,
        normed,
        stream,
        eps,
        # Each thread handles two 16-byte vectors in the 16-bit dtypes, or more once a program has 1024 threads.
        num_warps=max(1, min(1024, block // 16) // launch.target.warp_size),
        num_stages=1,
        SIZE=size,
        BLOCK=block,
        DEPENDENT=launch.dependent,
    )
    return normed, stream


@triton.jit
def add_norm_rows(
    x,
    residual,
    weight,
    bias,
    normed,
    stream,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """`normed = (stream - m) / sqrt(mean((stream - m)^2) + eps) * weight + bias`, where stream = x + residual.

    With a bias this is layer norm, m = mean(stream) (Ba et al., arXiv 1607.06450). If `bias` is None it is RMS norm,
    m = 0 (Zhang and Sennrich, arXiv 1910.07467). If `residual` is None, the stream is x and is not written.

    The grid is (rows,), and SIZE <= BLOCK is the length of a row.
    """
    at = tl.arange(0, BLOCK)  # [BLOCK]
    inside = at < SIZE  # [BLOCK]
    row = tl.program_id(0).to(tl.int64) * SIZE
    # Loaded before the sums: a load after them would wait for them.
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)  # [BLOCK]
    if bias is not None:
        shift = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)  # [BLOCK]
    wait_for_kernels_before(DEPENDENT)
    total = tl.load(x + row + at, mask=inside, other=0.0)  # [BLOCK]
    if residual is not None:
        added = tl.load(residual + row + at, mask=inside, other=0.0)  # [BLOCK]
        # Rounded before the norm, so that the norm sees the stream as it is stored.
        total = (total.to(tl.float32) + added.to(tl.float32)).to(total.dtype)
        tl.store(stream + row + at, total, mask=inside)
    wide = total.to(tl.float32)  # [BLOCK]
    if bias is not None:
        wide = tl.where(inside, wide - tl.sum(wide, 0) / SIZE, 0.0)
    out = wide * tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps) * scale  # [BLOCK]
    if bias is not None:
        out += shift
    tl.store(normed + row + at, out.to(total.dtype), mask=inside)
