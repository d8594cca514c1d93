"""A plan's integers as tensors: the tokens of a step, and the layout that says where each of them belongs."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.backend import BatchLayout
from model.contract import Chunk, Decoding, StepPlan
from model.transfer import host_tensor, stage_named


@dataclass(frozen=True, slots=True)
class Batch:
    """A plan as tensors on the device. Chunks are sorted by their number of tokens, as `BatchLayout` requires."""

    tokens: Tensor
    """[tokens] int64; the entries at `places` are not known yet."""
    layout: BatchLayout
    begins: Sequence[int]
    """[others]: index in `tokens` of the first token of each of `StepPlan.others`, in their order."""
    rows: Tensor
    """[draws] int64: index in `tokens` of the token from whose logits each draw is made, in the plan's order."""
    places: Tensor
    """[following] int64: indices in `tokens` of the tokens that the previous step draws."""
    sources: Tensor
    """[following] int64: index of each such token among the previous step's draws."""

    def staged(self, device: torch.device) -> "Batch":
        """The batch on a device, copied in one transfer."""
        names = ("tokens", "rows", "places", "sources")
        tensors = self.layout.tensors()
        arrived = stage_named({name: getattr(self, name) for name in names} | tensors, device)
        layout = self.layout.with_tensors({name: arrived.pop(name) for name in tensors})
        return Batch(layout=layout, begins=self.begins, **arrived)

    def known_tokens(self, drawn: Tensor) -> Tensor:
        """All tokens [tokens] int64, the previous step's `drawn` tokens [its draws] int64 put in their places.

        A failed draw is INVALID_TOKEN. Token 0 takes its place, since the result is not used.
        """
        if not self.places.numel():
            return self.tokens
        return self.tokens.scatter(0, self.places, drawn.gather(0, self.sources).clamp(min=0))


def make_batch(plan: StepPlan, block_size: int, device: torch.device) -> Batch:
    """The batch of a plan's chunks, copied to `device` in one transfer."""
    batch = _mixed_batch(plan, block_size) if plan.others else _decoding_batch(plan.decoding, block_size)
    return batch if device.type == "cpu" else batch.staged(device)


def _decoding_batch(plain: Decoding, block_size: int) -> Batch:
    """The batch in host memory of plain decoding alone. Most steps are such, and the next one waits for it."""
    starts = plain.starts
    contexts = [start + 1 for start in starts]
    longest = max(contexts)
    slots = [
        blocks[start // block_size] * block_size + start % block_size
        for start, blocks in zip(starts, plain.blocks, strict=True)
    ]
    rows, query_starts = _counted(len(plain))
    layout = BatchLayout(
        query_starts=query_starts,
        context_lens=host_tensor(contexts, np.int32),
        block_table=torch.from_numpy(_block_table(plain.blocks, -(-longest // block_size))),
        slots=host_tensor(slots, np.int64),
        positions=host_tensor(starts, np.int64),
        singles=len(plain),
        max_query=1,
        max_context=longest,
    )
    places, sources = _following(plain.follows, rows.numpy() + 1)
    return Batch(host_tensor(plain.tokens, np.int64), layout, [], rows, places, sources)


@lru_cache(maxsize=256)
def _counted(count: int) -> tuple[Tensor, Tensor]:
    """The numbers from 0 to `count` - 1, int64, and those from 0 to `count`, int32. Nobody edits them."""
    return torch.arange(count), torch.arange(count + 1, dtype=torch.int32)


def _mixed_batch(plan: StepPlan, block_size: int) -> Batch:
    """The batch of a plan in host memory."""
    plain = plan.decoding
    lengths = [len(chunk.tokens) for chunk in plan.others]
    # Plain decoding comes first already, and a stable order puts other chunks of one token behind it.
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    others = [plan.others[index] for index in order]
    layout, ends = _host_layout(
        _after_ones(len(plain), [lengths[index] for index in order]),
        np.array([*plain.starts, *[chunk.start for chunk in others]]),
        [*plain.blocks, *[chunk.blocks for chunk in others]],
        block_size,
    )
    ends[len(plain) :][order] = ends[len(plain) :].copy()
    draws = _after_ones(len(plain), [len(chunk.draws) for chunk in plan.others])
    tokens = [*plain.tokens, *chain.from_iterable([chunk.tokens for chunk in others])]
    places, sources = _following([*plain.follows, *[chunk.follows for chunk in plan.others]], ends)
    return Batch(
        tokens=host_tensor(tokens, np.int64),
        layout=layout,
        begins=(ends[len(plain) :] - lengths).tolist(),
        rows=torch.from_numpy(_ranges(ends - draws, draws)),
        places=places,
        sources=sources,
    )


def _following(follows: Sequence[int | None], ends: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """`Batch.places` and `Batch.sources` of chunks that end at `ends` in the batch, both in the plan's order."""
    if follows.count(None) == len(follows):
        none, _ = _counted(0)
        return none, none
    sources = np.array([-1 if source is None else source for source in follows], np.int64)
    following = sources >= 0
    return torch.from_numpy(ends[following] - 1), torch.from_numpy(sources[following])


def batch_layout(chunks: Sequence[Chunk], block_size: int, device: torch.device) -> BatchLayout:
    """The layout on `device` of `chunks` in a cache with blocks of `block_size` tokens.

    Raises ValueError unless chunks with fewer tokens come first.
    """
    counts = np.array([len(chunk.tokens) for chunk in chunks])
    if np.any(counts[1:] < counts[:-1]):
        raise ValueError("chunks with fewer tokens come first in a layout")
    starts = np.array([chunk.start for chunk in chunks])
    layout, _ = _host_layout(counts, starts, [chunk.blocks for chunk in chunks], block_size)
    return layout.with_tensors(stage_named(layout.tensors(), device))


def _host_layout(
    counts: NDArray[np.int64], starts: NDArray[np.int64], tables: Sequence[Sequence[int]], block_size: int
) -> tuple[BatchLayout, NDArray[np.int64]]:
    """The layout in host memory of chunks of `counts` tokens from `starts` on, and the end of each in the batch."""
    ends = np.cumsum(counts)
    contexts = starts + counts
    max_context = int(contexts.max())
    table = _block_table(tables, -(-max_context // block_size))
    positions = _ranges(starts, counts)
    sequence = np.repeat(np.arange(len(counts)), counts)
    blocks = table[sequence, positions // block_size].astype(np.int64)
    query_starts = np.zeros(len(counts) + 1, np.int32)
    query_starts[1:] = ends
    layout = BatchLayout(
        query_starts=torch.from_numpy(query_starts),
        context_lens=torch.from_numpy(contexts.astype(np.int32)),
        block_table=torch.from_numpy(table),
        slots=torch.from_numpy(blocks * block_size + positions % block_size),
        positions=torch.from_numpy(positions),
        singles=int(np.count_nonzero(counts == 1)),
        max_query=int(counts[-1]),
        max_context=max_context,
    )
    return layout, ends


def _after_ones(count: int, numbers: Sequence[int]) -> NDArray[np.int64]:
    """An array of `count` ones, followed by the numbers."""
    joined = np.ones(count + len(numbers), np.int64)
    joined[count:] = numbers
    return joined


def _ranges(firsts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """One after the other, `counts[i]` numbers from `firsts[i]` on."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) + np.repeat(firsts - ends + counts, counts)


def _block_table(tables: Sequence[Sequence[int]], width: int) -> NDArray[np.int32]:
    """The first blocks of each table [tables, width], padded with 0. Arrays of blocks are joined without being read."""
    parts = [blocks if len(blocks) <= width else blocks[:width] for blocks in tables]
    rows = [(part if isinstance(part, array) else array("i", part)).tobytes().ljust(4 * width, b"\0") for part in parts]
    return np.frombuffer(bytearray().join(rows), np.int32).reshape(len(rows), width)
