"""A plan's integers as tensors: the tokens of a step, and the layout that says where each of them belongs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.backend import BatchLayout
from model.contract import Chunk, StepPlan
from model.transfer import host_tensor, stage_named


@dataclass(frozen=True, slots=True)
class Batch:
    """A plan as tensors on the device. Chunks are sorted by their number of tokens, as `BatchLayout` requires."""

    tokens: Tensor
    """[tokens] int64; the entries at `places` are not known yet."""
    layout: BatchLayout
    begins: Sequence[int]
    """[chunks]: index in `tokens` of each chunk's first token, in the plan's order."""
    rows: Tensor
    """[draws] int64: index in `tokens` of the token from whose logits each draw is made, in the plan's order."""
    places: Tensor
    """[following] int64: indices in `tokens` of the tokens that the previous step draws."""
    sources: Tensor
    """[following] int64: index of each such token among the previous step's draws."""

    def known_tokens(self, drawn: Tensor) -> Tensor:
        """All tokens [tokens] int64, the previous step's `drawn` tokens [its draws] int64 put in their places.

        A failed draw is INVALID_TOKEN. Token 0 takes its place, since the result is not used.
        """
        if not self.places.numel():
            return self.tokens
        return self.tokens.scatter(0, self.places, drawn.gather(0, self.sources).clamp(min=0))


def make_batch(plan: StepPlan, block_size: int, device: torch.device) -> Batch:
    """The batch of a plan's chunks, copied to `device` in one transfer."""
    order = sorted(range(len(plan.chunks)), key=lambda index: len(plan.chunks[index].tokens))
    chunks = [plan.chunks[index] for index in order]
    ends = accumulate(len(chunk.tokens) for chunk in chunks)
    end = dict(zip(order, ends, strict=True))
    follows = {end[index] - 1: chunk.follows for index, chunk in enumerate(plan.chunks) if chunk.follows is not None}
    layout = _host_layout(chunks, block_size)
    integers = {
        "tokens": [*chain.from_iterable(chunk.tokens for chunk in chunks)],
        "rows": [
            row for index, chunk in enumerate(plan.chunks) for row in range(end[index] - len(chunk.draws), end[index])
        ],
        "places": [*follows],
        "sources": [*follows.values()],
    }
    columns = {name: host_tensor(column, np.int64) for name, column in integers.items()}
    arrived = stage_named(columns | layout.tensors(), device)
    layout = layout.with_tensors({name: arrived.pop(name) for name in layout.tensors()})
    begins = [end[index] - len(chunk.tokens) for index, chunk in enumerate(plan.chunks)]
    return Batch(layout=layout, begins=begins, **arrived)


def batch_layout(chunks: Sequence[Chunk], block_size: int, device: torch.device) -> BatchLayout:
    """The layout on `device` of `chunks` in a cache with blocks of `block_size` tokens.

    Raises ValueError unless chunks with fewer tokens come first.
    """
    layout = _host_layout(chunks, block_size)
    return layout.with_tensors(stage_named(layout.tensors(), device))


def _host_layout(chunks: Sequence[Chunk], block_size: int) -> BatchLayout:
    counts = [len(chunk.tokens) for chunk in chunks]
    if counts != sorted(counts):
        raise ValueError("chunks with fewer tokens come first in a layout")
    contexts = [chunk.start + count for chunk, count in zip(chunks, counts, strict=True)]
    table = _block_table(chunks, -(-max(contexts) // block_size))
    ranges = (range(chunk.start, end) for chunk, end in zip(chunks, contexts, strict=True))
    positions = np.array([*chain.from_iterable(ranges)], np.int64)
    sequence = np.repeat(np.arange(len(chunks)), counts)
    blocks = table[sequence, positions // block_size].astype(np.int64)
    return BatchLayout(
        query_starts=host_tensor([0, *accumulate(counts)], np.int32),
        context_lens=host_tensor(contexts, np.int32),
        block_table=torch.from_numpy(table),
        slots=torch.from_numpy(blocks * block_size + positions % block_size),
        positions=torch.from_numpy(positions),
        singles=counts.count(1),
        max_query=max(counts),
        max_context=max(contexts),
    )


def _block_table(chunks: Sequence[Chunk], width: int) -> NDArray[np.int32]:
    table = np.zeros((len(chunks), width), np.int32)
    for row, chunk in zip(table, chunks, strict=True):
        blocks = chunk.blocks[:width]
        row[: len(blocks)] = blocks
    return table
