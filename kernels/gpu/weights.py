"""The weights of attention themselves, of some rows of one sequence, for those who look at them.

Keys are read twice: for the softmax's denominator, and then for the weights, which `attend` never writes to memory.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import AttentionOptions, LayerCache
from kernels.gpu.attention import check_head_dimension, key_constants, scores_in_base_2
from kernels.gpu.launch import Launcher
from kernels.gpu.tiles import LOG2_E, LOWEST, load_rows, masked_logits

BLOCK_M, BLOCK_N = 16, 32
"""Rows and keys of a tile, so small that no head dimension needs more registers than there are."""


def attention_weights(
    launch: Launcher,
    q: Tensor,
    positions: Tensor,
    cache: LayerCache,
    blocks: Tensor,
    heads: Sequence[int],
    options: AttentionOptions,
) -> Tensor:
    """See `Backend.attention_weights`. Raises ValueError for a head dimension without a kernel."""
    check_head_dimension(q.shape[2])
    keys, constants = key_constants(launch, q, cache.keys)
    chosen = torch.tensor(heads, dtype=torch.int32)
    if q.device.type == "cuda":
        chosen = chosen.pin_memory()
    rows, width = len(q), len(blocks) * keys.shape[1]
    out = torch.zeros(len(heads), rows, width, dtype=torch.float32, device=q.device)
    scale, cap = scores_in_base_2(options)
    launch(
        weights_kernel,
        (len(heads), triton.cdiv(rows, BLOCK_M)),
        *(out, q, keys, cache.key_scales, options.sinks, options.alibi_slopes, positions, blocks),
        *(chosen.to(q.device, non_blocking=True), rows, width, scale, cap, options.window),
        **constants,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        num_warps=2,
        num_stages=1,
    )
    return out


@triton.jit(do_not_specialize=["rows", "width"])
def weights_kernel(
    out,
    q,
    keys,
    key_scales,
    sinks,
    slopes,
    positions,
    table,
    chosen,
    rows,
    width,
    scale,
    cap,
    window,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    Q_TOKEN_STRIDE: tl.constexpr,
    Q_HEAD_STRIDE: tl.constexpr,
    PAGE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    TOKEN_STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    OPERAND: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """`out[h, i, j] = 2^logits[i, j] / sum_j 2^logits[i, j]`, with logits as in `tiles`, for the `chosen` heads h.

    `q` is [rows, heads, head_dim], `positions` are [rows] int64, `table` is the sequence's row of the block table,
    and `out` [chosen, rows, width], whose other numbers are 0 already. The grid is (chosen, tiles of rows).
    """
    head = tl.load(chosen + tl.program_id(0))
    kv_head = head // GROUP
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    real = row < rows  # [BLOCK_M]
    at = tl.load(positions + row, mask=real, other=0).to(tl.int32)  # [BLOCK_M]
    context = tl.max(at, 0) + 1
    begin = 0
    if window is not None:
        begin = tl.maximum(tl.min(tl.where(real, at, context), 0) - window + 1, 0) // BLOCK_N * BLOCK_N

    # [BLOCK_M, HEAD], [BLOCK_M, TAIL]
    q_rows = load_rows(q + row.to(tl.int64) * Q_TOKEN_STRIDE + head * Q_HEAD_STRIDE, real, HEAD, TAIL, OPERAND, False)
    key_scale = scale if key_scales is None else scale * tl.load(key_scales + kv_head)
    slope = None if slopes is None else tl.load(slopes + head) * LOG2_E + tl.zeros([BLOCK_M], tl.float32)  # [BLOCK_M]
    if sinks is None:
        greatest = tl.full([BLOCK_M], LOWEST, tl.float32)  # [BLOCK_M]
        total = tl.zeros([BLOCK_M], tl.float32)  # [BLOCK_M]
    else:
        greatest = tl.load(sinks + head) * LOG2_E + tl.zeros([BLOCK_M], tl.float32)
        total = tl.full([BLOCK_M], 1.0, tl.float32)
    own_keys = keys + kv_head * HEAD_STRIDE
    # The sum over all keys has to be known before any weight is: the keys are read twice.
    for writing in tl.static_range(2):
        for start in range(begin, context, BLOCK_N):
            logits = masked_logits(
                q_rows,
                own_keys,
                table,
                start,
                context,
                at,
                key_scale,
                cap,
                slope,
                window,
                BLOCK_N,
                PAGE,
                PAGE_STRIDE,
                TOKEN_STRIDE,
                HEAD,
                TAIL,
                OPERAND,
                NATIVE_FP8,
            )  # [BLOCK_M, BLOCK_N]
            if writing:
                weights = tl.exp2(logits - greatest[:, None]) / total[:, None]  # [BLOCK_M, BLOCK_N]
                columns = start + tl.arange(0, BLOCK_N)  # [BLOCK_N]
                # [BLOCK_M, BLOCK_N]
                places = (tl.program_id(0).to(tl.int64) * rows + row)[:, None] * width + columns[None, :]
                tl.store(out + places, weights, mask=real[:, None] & (columns < width)[None, :])
            else:
                top = tl.maximum(greatest, tl.max(logits, 1))  # [BLOCK_M]
                total = total * tl.exp2(greatest - top) + tl.sum(tl.exp2(logits - top[:, None]), 1)
                greatest = top
