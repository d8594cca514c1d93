"""Random ragged batches over a scattered paged cache, in which whatever no sequence owns is NaN."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from kernels.backend import BatchLayout, KVCache, LayerCache
from kernels.reference import encode

Lengths = Sequence[tuple[int, int]]
"""(tokens in the cache already, new tokens) of each sequence, those with fewer new tokens first."""

PADDING = (-1, 1)
"""Among `Lengths`: a sequence that pads a captured graph's batch, one token of a context of 0."""

PADDING_BEHIND_PROMPTS = (0, 0), (-90, 90)
"""Among `Lengths`: sequences that pad such a batch's prompts, no token and many of them."""

FP8 = torch.float8_e4m3fn
FP8_NAN = 0x7F


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """Queries, the cache with the keys and values of them and of what came before, and the layout."""

    q: Tensor
    cache: LayerCache
    layout: BatchLayout


def attention_case(
    lengths: Lengths,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> AttentionCase:
    """Normally distributed queries, keys and values of `lengths`; the cache is one of several layers'.

    Blocks are handed out in random order, and never block 0, which the padding of a block table names. A `cache_dtype`
    of FP8 comes with a random scale for each head.
    """
    generator = torch.Generator(device).manual_seed(seed)
    device = generator.device
    layout, blocks = ragged_layout(lengths, block_size, device, generator)
    cache = KVCache(
        layers=2,
        blocks=blocks,
        block_size=block_size,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=cache_dtype or dtype,
        device=device,
    ).layers[1]
    poison(cache.keys)
    poison(cache.values)
    for scales in (cache.key_scales, cache.value_scales):
        if scales is not None:
            scales.uniform_(0.25, 1.0, generator=generator)
    for row, (cached, new) in zip(layout.block_table, lengths, strict=True):
        at = torch.arange(cached + new, device=device)
        slots = row[at // block_size].long() * block_size + at % block_size
        for stored, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales)):
            numbers = torch.randn(len(slots), kv_heads, head_dim, device=device, generator=generator)
            stored.flatten(0, 1)[slots] = encode(numbers.to(dtype), scales, stored.dtype)
    q = torch.randn(len(layout.slots), heads, head_dim, device=device, generator=generator)
    return AttentionCase(q.to(dtype), cache, layout)


def ragged_layout(
    lengths: Lengths, block_size: int, device: torch.device, generator: torch.Generator
) -> tuple[BatchLayout, int]:
    """The layout of `lengths` over blocks in random order; how many blocks the cache must have."""
    counts = [new for _, new in lengths]
    contexts = [cached + new for cached, new in lengths]
    needed = [-(-context // block_size) for context in contexts]
    ids = torch.randperm(sum(needed) + 2, device=device, generator=generator)
    owned = iter(ids[ids != 0].tolist())
    table = torch.zeros(len(lengths), max(1, *needed), dtype=torch.int32)
    for row, count in zip(table, needed, strict=True):
        row[:count] = torch.tensor([next(owned) for _ in range(count)], dtype=torch.int32)
    positions, slots = [], []
    for row, (cached, new) in zip(table, lengths, strict=True):
        at = torch.arange(cached, cached + new)
        positions.append(at.clamp(min=0))
        slots.append(torch.where(at < 0, -1, row[at // block_size].long() * block_size + at % block_size))
    layout = BatchLayout(
        query_starts=torch.tensor([0, *accumulate(counts)], dtype=torch.int32).to(device),
        context_lens=torch.tensor(contexts, dtype=torch.int32).to(device),
        block_table=table.to(device),
        slots=torch.cat(slots).to(device),
        positions=torch.cat(positions).to(device),
        singles=counts.count(1),
        max_query=max(counts),
        max_context=max(contexts),
    )
    return layout, len(ids)


def part_of(case: AttentionCase, sequence: int, first: int, last: int) -> AttentionCase:
    """A batch of nothing but the new tokens `first` to `last` - 1 of one sequence, over the same cache."""
    layout = case.layout
    begin, end = layout.query_starts[sequence : sequence + 2].tolist()
    context = int(layout.context_lens[sequence]) - (end - begin) + last
    rows = slice(begin + first, begin + last)
    width = max(1, -(-context // case.cache.keys.shape[1]))
    return replace(
        case,
        q=case.q[rows],
        layout=replace(
            layout,
            query_starts=torch.tensor([0, last - first], dtype=torch.int32, device=case.q.device),
            context_lens=torch.tensor([context], dtype=torch.int32, device=case.q.device),
            block_table=layout.block_table[sequence : sequence + 1, :width],
            slots=layout.slots[rows],
            positions=layout.positions[rows],
            singles=int(last - first == 1),
            max_query=last - first,
            max_context=context,
        ),
    )


def poison(stored: Tensor) -> None:
    """Fill with NaN, in FP8 too."""
    if stored.dtype == FP8:
        stored.view(torch.uint8).fill_(FP8_NAN)
    else:
        stored.fill_(float("nan"))
