"""Products of a dense weight with one token, y = W x + bias. Knows nothing of what the weight belongs to.

One token has work for the memory alone, none for tensor cores. Each program reads whole rows of the weight, so that no
sums of splits are to be added, and reads them one step ahead. Where kernels are launched early, it reads the first step
before the kernel that computes x has ended.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.dependent import wait_for_kernels_before
from kernels.gpu.launch import Launcher


class RowTiling(NamedTuple):
    """The tile of a weight that a program reads at a time, and the launch options of `_multiply_rows`."""

    outputs: int = 4
    inputs: int = 1024
    num_warps: int = 4


def multiply_rows(launch: Launcher, x: Tensor, weight: Tensor, bias: Tensor | None, tiling: RowTiling) -> Tensor:
    """X W^T + bias, [1, in] -> [1, out], in x's dtype; the sums are float32. `weight` is [out, in] in x's dtype."""
    outputs, inputs = weight.shape
    y = x.new_empty(1, outputs)
    launch(
        _multiply_rows,
        (triton.cdiv(outputs, tiling.outputs),),
        *(x.contiguous(), weight, bias, y, outputs, inputs),
        OUTPUTS=tiling.outputs,
        TILE=tiling.inputs,
        DEPENDENT=launch.dependent,
        num_warps=tiling.num_warps,
        num_stages=1,
    )
    return y


@triton.jit
def _multiply_rows(
    x, weight, bias, y, outputs, inputs, OUTPUTS: tl.constexpr, TILE: tl.constexpr, DEPENDENT: tl.constexpr
):
    """y[n] = sum over k of weight[n, k] x[k] + bias[n] for OUTPUTS rows n of the weight, TILE inputs k at a time."""
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)  # [OUTPUTS]
    # Rows past the end read the last row again; they are not stored.
    row = weight + tl.minimum(n, outputs - 1).to(tl.int64)[:, None] * inputs  # [OUTPUTS, 1]
    k = tl.arange(0, TILE)[None, :]  # [1, TILE]
    numbers = tl.load(row + k, mask=k < inputs, other=0.0)  # [OUTPUTS, TILE]
    wait_for_kernels_before(DEPENDENT)
    total = tl.zeros([OUTPUTS, TILE], tl.float32)  # [OUTPUTS, TILE]
    for start in range(0, inputs, TILE):
        ahead = start + TILE + k  # [1, TILE]
        following = tl.load(row + ahead, mask=ahead < inputs, other=0.0)  # [OUTPUTS, TILE]
        values = tl.load(x + start + k, mask=start + k < inputs, other=0.0)  # [1, TILE]
        total = tl.fma(numbers.to(tl.float32), tl.broadcast_to(values.to(tl.float32), [OUTPUTS, TILE]), total)
        numbers = following
    result = tl.sum(total, 1)  # [OUTPUTS]
    if bias is not None:
        result += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)
    tl.store(y + n, result.to(y.dtype.element_ty), mask=n < outputs)
