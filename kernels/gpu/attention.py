"""Causal attention over the paged cache: which kernel takes which sequences, and with what.

The sequences that decode stand first in a batch. They go to one kernel, prompts to another, with tiles that depend on
the model and the chip alone: what a sequence's attention comes to does not depend, in any bit, on the batch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import AttentionOptions, BatchLayout, LayerCache
from kernels.gpu.fp8 import converts_e4m3
from kernels.gpu.launch import Launcher
from kernels.gpu.prefill import prefill_kernel, prefill_tiles
from kernels.gpu.tiles import HEAD_PARTS, LOG2_E

OPERANDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def attend(launch: Launcher, q: Tensor, cache: LayerCache, layout: BatchLayout, options: AttentionOptions) -> Tensor:
    dim = q.shape[2]
    head, tail = HEAD_PARTS[dim]
    kv_heads = cache.keys.shape[2]
    keys, values = cache.keys, cache.values
    operand = q.dtype
    if keys.dtype == torch.float8_e4m3fn:
        keys, values = keys.view(torch.uint8), values.view(torch.uint8)
        operand = torch.float32 if q.dtype == torch.float32 else torch.float16
    scale, cap = options.scale * LOG2_E.value, None
    if options.softcap is not None:
        scale, cap = 2 * scale / options.softcap, options.softcap * LOG2_E.value
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    tiles = prefill_tiles(dim, operand, launch.target)
    first, sequences = layout.singles, layout.context_lens.shape[0]
    group = q.shape[1] // kv_heads
    count = (q.shape[0] - first) * group // tiles.block_m + sequences - first
    launch(
        prefill_kernel,
        (kv_heads, count),
        out,
        q,
        keys,
        values,
        cache.key_scales,
        cache.value_scales,
        options.sinks,
        options.alibi_slopes,
        layout.context_lens,
        layout.block_table,
        layout.block_table.stride(0),
        scale,
        cap,
        options.window,
        layout.query_starts,
        first,
        sequences,
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD=head,
        TAIL=tail,
        Q_TOKEN_STRIDE=q.stride(0),
        Q_HEAD_STRIDE=q.stride(1),
        PAGE=keys.shape[1],
        PAGE_STRIDE=keys.stride(0),
        TOKEN_STRIDE=keys.stride(1),
        HEAD_STRIDE=keys.stride(2),
        OPERAND=OPERANDS[operand],
        NATIVE_FP8=converts_e4m3(launch.target),
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out
