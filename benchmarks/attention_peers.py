"""The same attention by other libraries. Torch's kernels get contiguous keys and values instead of a block table."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.attention_case import Case, Lengths
from benchmarks.bench import Bench

Peer = Callable[[Bench, Case], float]
"""Seconds that a peer takes for a case."""
FLASHINFER_WORKSPACE = 256 << 20
"""Bytes."""


def _dense(bench: Bench, lengths: Lengths) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values, each [sequences, heads, tokens, head_dim], for sequences of equal lengths."""
    sizes = bench.sizes
    ((total, new),) = set(lengths)
    q = bench.random(len(lengths), sizes.heads, new, sizes.head_dim)
    k, v = (bench.random(len(lengths), sizes.kv_heads, total, sizes.head_dim) for _ in range(2))
    return q, k, v


def _sdpa(backend: SDPBackend, bench: Bench, case: Case) -> float:
    q, k, v = _dense(bench, case.shape.lengths)
    new, total = q.shape[2], k.shape[2]
    mask: Tensor | None = None
    # The queries of a chunk are at the end of its context, but is_causal would align them with its beginning. Flash has
    # a mask type for this; other backends get the mask as a tensor.
    if 1 < new < total and backend == SDPBackend.FLASH_ATTENTION:
        mask = causal_lower_right(new, total)
    elif 1 < new < total:
        hidden = torch.ones(new, total, dtype=torch.bool, device=bench.device).triu(total - new + 1)
        mask = torch.zeros(1, 1, new, total, dtype=q.dtype, device=bench.device).masked_fill(hidden, float("-inf"))
    causal = 1 < new == total
    attention = partial(F.scaled_dot_product_attention, q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)
    with sdpa_kernel(backend):
        return bench.timer.cold(attention)


def flex(bench: Bench, lengths: Lengths) -> float:
    """Seconds that flex_attention takes, compiled for this shape."""
    q, k, v = _dense(bench, lengths)
    new, total = q.shape[2], k.shape[2]

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query + (total - new) >= key

    mask = None if new == 1 else create_block_mask(visible, None, None, new, total, device=str(bench.device))
    compiled: Any = flex_attention
    if bench.device.type == "cuda":  # Only the code that torch generates is worth a comparison.
        torch.compiler.reset()  # Torch limits the number of shapes that one function is compiled for.
        compiled = torch.compile(flex_attention, dynamic=False)
    return bench.timer.cold(partial(compiled, q, k, v, block_mask=mask, enable_gqa=True))


def _flashinfer(bench: Bench, case: Case) -> float:
    import flashinfer  # type: ignore[import-not-found, unused-ignore]

    shape, layout, size = case.shape, case.layout, bench.sizes.block_size
    contexts = layout.context_lens.cpu()
    counts = (contexts + size - 1) // size
    starts = F.pad(counts.cumsum(0), (1, 0)).int()
    pages = torch.cat([row[:count] for row, count in zip(layout.block_table.cpu(), counts.tolist(), strict=True)])
    last = ((contexts - 1) % size + 1).int()
    heads = (shape.heads, shape.kv_heads, shape.head_dim, size)
    dtypes = {"q_data_type": case.q.dtype, "kv_data_type": case.cache.keys.dtype}
    workspace = torch.empty(FLASHINFER_WORKSPACE, dtype=torch.uint8, device=bench.device)
    if layout.max_query == 1:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
        wrapper.plan(starts, pages, last, *heads, **dtypes)
    else:
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
        wrapper.plan(layout.query_starts.cpu(), starts, pages, last, *heads, causal=True, **dtypes)
    return bench.timer.cold(lambda: wrapper.run(case.q, (case.cache.keys, case.cache.values)))


def peers(case: Case) -> dict[str, Peer]:
    """The peers that can compute `case`. Torch's kernels need sequences of equal lengths and no FP8 cache."""
    found: dict[str, Peer] = {}
    if len(set(case.shape.lengths)) == 1 and case.cache.key_scales is None:
        found["torch flash"] = partial(_sdpa, SDPBackend.FLASH_ATTENTION)
        found["torch cudnn"] = partial(_sdpa, SDPBackend.CUDNN_ATTENTION)
    if importlib.util.find_spec("flashinfer") is not None:
        found["flashinfer"] = _flashinfer
    return found
