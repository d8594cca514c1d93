"""A plan's integers as tensors: the tokens of a step, and the layout that says where each of them belongs."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

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
    counts = np.array([len(chunk.tokens) for chunk in plan.chunks])
    order = np.argsort(counts, kind="stable")
    chunks = [plan.chunks[index] for index in order.tolist()]
    ends = np.empty_like(counts)
    ends[order] = np.cumsum(counts[order])
    draws = np.array([len(chunk.draws) for chunk in plan.chunks])
    sources = np.array([-1 if chunk.follows is None else chunk.follows for chunk in plan.chunks])
    following = sources >= 0
    layout = _host_layout(chunks, block_size)
    columns = {
        "tokens": host_tensor([*chain.from_iterable([chunk.tokens for chunk in chunks])], np.int64),
        "rows": torch.from_numpy(_ranges(ends - draws, draws)),
        "places": torch.from_numpy(ends[following] - 1),
        "sources": torch.from_numpy(sources[following]),
    }
    arrived = stage_named(columns | layout.tensors(), device)
    layout = layout.with_tensors({name: arrived.pop(name) for name in layout.tensors()})
    return Batch(layout=layout, begins=(ends - counts).tolist(), **arrived)


def batch_layout(chunks: Sequence[Chunk], block_size: int, device: torch.device) -> BatchLayout:
    """The layout on `device` of `chunks` in a cache with blocks of `block_size` tokens.

    Raises ValueError unless chunks with fewer tokens come first.
    """
    layout = _host_layout(chunks, block_size)
    return layout.with_tensors(stage_named(layout.tensors(), device))


def _host_layout(chunks: Sequence[Chunk], block_size: int) -> BatchLayout:
    counts = np.array([len(chunk.tokens) for chunk in chunks])
    if np.any(counts[1:] < counts[:-1]):
        raise ValueError("chunks with fewer tokens come first in a layout")
    starts = np.array([chunk.start for chunk in chunks])
    contexts = starts + counts
    max_context = int(contexts.max())
    table = _block_table(chunks, -(-max_context // block_size))
    positions = _ranges(starts, counts)
    sequence = np.repeat(np.arange(len(chunks)), counts)
    blocks = table[sequence, positions // block_size].astype(np.int64)
    return BatchLayout(
        query_starts=host_tensor([0, *np.cumsum(counts).tolist()], np.int32),
        context_lens=torch.from_numpy(contexts.astype(np.int32)),
        block_table=torch.from_numpy(table),
        slots=torch.from_numpy(blocks * block_size + positions % block_size),
        positions=torch.from_numpy(positions),
        singles=int(np.count_nonzero(counts == 1)),
        max_query=int(counts[-1]),
        max_context=max_context,
    )


def _ranges(firsts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """One after the other, `counts[i]` numbers from `firsts[i]` on."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) + np.repeat(firsts - ends + counts, counts)


def _block_table(chunks: Sequence[Chunk], width: int) -> NDArray[np.int32]:
    """The blocks of each chunk [chunks, width], padded with 0. Blocks in an array are joined without being read."""
    parts = [chunk.blocks[:width] for chunk in chunks]
    rows = [part if isinstance(part, array) else array("i", part) for part in parts]
    table = np.zeros((len(chunks), width), np.int32)
    lengths = np.array([len(row) for row in rows])
    table[np.arange(width) < lengths[:, None]] = np.frombuffer(b"".join(rows), np.int32)
    return table
