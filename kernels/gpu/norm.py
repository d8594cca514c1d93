"""RMS norm and layer norm, each with the addition to the residual stream that comes before it.

One program holds one row, so that a row's result depends on nothing else, and reads and writes it once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.launch import Launcher


def add_rms_norm(
    launch: Launcher, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `Backend.add_rms_norm`; [..., size]."""
    return _add_norm(launch, x, residual, weight, None, eps)


def add_layer_norm(
    launch: Launcher, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `Backend.add_layer_norm`; [..., size]."""
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
        # Two vectors of 16 bytes a thread in the 16-bit dtypes, until a program has as many threads as it may have.
        num_warps=max(1, min(1024, block // 16) // launch.target.warp_size),
        num_stages=1,
        SIZE=size,
        BLOCK=block,
    )
    return normed, stream


@triton.jit
def add_norm_rows(x, residual, weight, bias, normed, stream, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Stream = x + residual, normed = (stream - m) / sqrt(mean((stream - m)^2) + eps) * weight + bias.

    With a bias it is layer norm, where m = mean(stream) (Ba et al., arXiv 1607.06450); without (None), RMS norm, where
    m = 0 (Zhang and Sennrich, arXiv 1910.07467). Where `residual` is None the stream is x and not written.
    """
    at = tl.arange(0, BLOCK)
    inside = at < SIZE
    row = tl.program_id(0).to(tl.int64) * SIZE
    total = tl.load(x + row + at, mask=inside, other=0.0)
    # Before the sums, which everything that is loaded later would wait for.
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        shift = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        added = tl.load(residual + row + at, mask=inside, other=0.0)
        # What is normed is the stream as it is stored: rounded.
        total = (total.to(tl.float32) + added.to(tl.float32)).to(total.dtype)
        tl.store(stream + row + at, total, mask=inside)
    wide = total.to(tl.float32)
    if bias is not None:
        wide = tl.where(inside, wide - tl.sum(wide, 0) / SIZE, 0.0)
    out = wide * tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps) * scale
    if bias is not None:
        out += shift
    tl.store(normed + row + at, out.to(total.dtype), mask=inside)
