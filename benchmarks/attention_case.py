"""A batch for attention: random queries, keys and values, in cache blocks in random order."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.bench import Bench
from kernels.backend import AttentionOptions, BatchLayout, KVCache, LayerCache
from model.batch import batch_layout
from model.contract import Chunk

FP8 = torch.float8_e4m3fn
Lengths = Sequence[tuple[int, int]]
"""(tokens in the cache, new tokens among them) of each sequence; sequences with fewer new tokens come first."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The lengths of the sequences, and their heads."""

    lengths: Lengths
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def queries(self) -> int:
        """New tokens of all sequences."""
        return sum(new for _, new in self.lengths)

    @property
    def operations(self) -> float:
        """Multiplications and additions of both products, over the (query, key) pairs that the causal mask leaves."""
        pairs = sum(new * (total - new) + new * (new + 1) / 2 for total, new in self.lengths)
        return 4.0 * self.heads * self.head_dim * pairs

    def bytes(self, itemsize: int, cache_itemsize: int) -> float:
        """Bytes to move: every key, value and query is read once, every output is written once."""
        cached = 2 * sum(total for total, _ in self.lengths) * self.kv_heads * self.head_dim
        return cached * cache_itemsize + 2 * self.queries * self.heads * self.head_dim * itemsize


@dataclass(frozen=True, slots=True)
class Case:
    """The tensors of a shape."""

    shape: Shape
    q: Tensor
    """[tokens, heads, head_dim]."""
    cache: LayerCache
    layout: BatchLayout

    @property
    def options(self) -> AttentionOptions:
        return AttentionOptions(self.shape.head_dim**-0.5)

    @property
    def bytes(self) -> float:
        """Bytes to move."""
        return self.shape.bytes(self.q.dtype.itemsize, self.cache.keys.dtype.itemsize)


def make_case(bench: Bench, lengths: Lengths, cache_dtype: torch.dtype | None = None) -> Case:
    """The case of `lengths` with the bench's numbers of heads; the cache has `cache_dtype`, or the model's dtype."""
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
        for block in stored.split(4096):  # In parts, so that the random numbers take little memory.
            block.copy_(torch.randn(block.shape, dtype=sizes.dtype, device=device))
    order = iter(torch.randperm(blocks).tolist())
    chunks = [Chunk([0] * new, total - new, [next(order) for _ in range(-(-total // size))]) for total, new in lengths]
    shape = Shape(lengths, sizes.heads, sizes.kv_heads, sizes.head_dim)
    q = bench.random(shape.queries, sizes.heads, sizes.head_dim)
    return Case(shape, q, cache.layers[0], batch_layout(chunks, size, device))
