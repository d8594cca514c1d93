"""A batch for attention: random queries, keys and values, in blocks that lie in the cache in random order."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.bench import Bench
from kernels.backend import AttentionOptions, BatchLayout, KVCache, LayerCache
from model.contract import Chunk
from model.runner import batch_layout

FP8 = torch.float8_e4m3fn
Lengths = Sequence[tuple[int, int]]
"""(tokens in the cache, of which new) of each sequence, those with fewer new tokens first."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How long the sequences are, and what heads they have."""

    lengths: Lengths
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def queries(self) -> int:
        return sum(new for _, new in self.lengths)

    @property
    def operations(self) -> float:
        """Multiplications and additions of both products, for the pairs that the causal mask leaves."""
        pairs = sum(new * (total - new) + new * (new + 1) / 2 for total, new in self.lengths)
        return 4.0 * self.heads * self.head_dim * pairs

    def bytes(self, itemsize: int, cache_itemsize: int) -> float:
        """Every key and value once, every query in and out."""
        cached = 2 * sum(total for total, _ in self.lengths) * self.kv_heads * self.head_dim
        return cached * cache_itemsize + 2 * self.queries * self.heads * self.head_dim * itemsize


@dataclass(frozen=True, slots=True)
class Case:
    """A shape's tensors."""

    shape: Shape
    q: Tensor
    cache: LayerCache
    layout: BatchLayout

    @property
    def options(self) -> AttentionOptions:
        return AttentionOptions(self.shape.head_dim**-0.5)

    @property
    def bytes(self) -> float:
        """What has to be moved."""
        return self.shape.bytes(self.q.dtype.itemsize, self.cache.keys.dtype.itemsize)


def make_case(bench: Bench, lengths: Lengths, cache_dtype: torch.dtype | None = None) -> Case:
    """Tensors of `lengths` in the bench's number of heads, in a cache of `cache_dtype` or the model's."""
    sizes, device = bench.sizes, bench.device
    size = sizes.block_size
    blocks = sum(-(-total // size) for total, _ in lengths)
    cache = KVCache(
        layers=1,
        blocks=blocks,
        block_size=size,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        dtype=cache_dtype or sizes.dtype,
        device=device,
    )
    for stored in cache.layers[0][:2]:
        for block in stored.split(4096):  # The random numbers take little memory beside the cache itself.
            block.copy_(torch.randn(block.shape, dtype=sizes.dtype, device=device))
    order = iter(torch.randperm(blocks).tolist())
    chunks = [
        Chunk([0] * new, total - new, [next(order) for _ in range(-(-total // size))], None) for total, new in lengths
    ]
    shape = Shape(lengths, sizes.heads, sizes.kv_heads, sizes.head_dim)
    q = bench.random(shape.queries, sizes.heads, sizes.head_dim)
    return Case(shape, q, cache.layers[0], batch_layout(chunks, size, device))
