"""Runs steps: a plan's integers become tensors, the decoder computes logits, and logits become tokens.

The scheduler decides which chunks make a step; the runner computes any plan.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import numpy as np
import torch
from torch import Tensor

from kernels.backend import BatchLayout, KVCache
from model.contract import Chunk, ChunkResult, DeviceLostError, ModelLimits, RunnerInfo, StepPlan, StepResult
from model.decoder import Decoder
from model.graphs import GraphedDecoder
from model.recorded import RecordedDecoder
from model.sampling.choice import Choice, choose, read_choice
from model.sampling.memory import TokenMemory
from model.transfer import Moment, stage_named, to_host


class ModelRunner:
    """`model.contract.Runner` made of a decoder and its KV cache.

    On a CUDA device `start` queues the work and returns at once, so that the host can prepare the next step while the
    device computes. Only a step that first captures a graph makes the host wait.
    """

    def __init__(self, decoder: Decoder | GraphedDecoder | RecordedDecoder, cache: KVCache, max_context: int) -> None:
        self._decoder = decoder
        self._cache = cache
        self._device = decoder.weights.device
        self._limits = ModelLimits(decoder.spec.vocab_size, max_context, cache.blocks, cache.block_size)
        self._memory = TokenMemory(max_context, self._device)
        self._drawn = torch.zeros(0, dtype=torch.int64, device=self._device)
        """Tokens [draws] int64 that the newest step draws; `Chunk.follows` of the next step are indices into it."""

    @property
    def limits(self) -> ModelLimits:
        return self._limits

    @property
    def info(self) -> RunnerInfo:
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else str(self._device)
        return RunnerInfo(
            device=name,
            dtype=_name(self._decoder.weights.dtype),
            cache_dtype=_name(self._cache.layers[0].keys.dtype),
            backend=self._decoder.backend.name,
        )

    @property
    def lookahead(self) -> int:
        return 1 if self._device.type == "cuda" else 0

    @torch.inference_mode()
    def start(self, plan: StepPlan) -> "RunningStep":
        with _device_errors():
            return self._start(plan)

    def _start(self, plan: StepPlan) -> "RunningStep":
        began = Moment(self._device)
        batch = make_batch(plan, self._cache.block_size, self._device)
        hidden = self._decoder.forward(batch.known_tokens(self._drawn), batch.layout, self._cache)
        draws = [draw for chunk in plan.chunks for draw in chunk.draws]
        if not draws:
            computed = Moment(self._device)
            return RunningStep(plan, None, began, computed, computed)
        logits = self._decoder.logits(hidden.index_select(0, batch.rows))
        computed = Moment(self._device)
        choice = choose(self._decoder.backend, logits, draws, self._memory)
        self._drawn = choice.tokens
        brought = Choice(to_host(choice.tokens), None if choice.logprobs is None else to_host(choice.logprobs))
        return RunningStep(plan, brought, began, computed, Moment(self._device))


@dataclass(frozen=True, slots=True)
class RunningStep:
    """`model.contract.PendingStep` between its start and its end. Durations are measured on the device's clock."""

    plan: StepPlan
    choice: Choice | None
    """The drawn tokens in host memory, complete once the step has ended; None if there are no draws."""
    began: Moment
    computed: Moment
    ended: Moment

    def result(self) -> StepResult:
        with _device_errors():
            self.ended.wait()
        return StepResult(
            self._chunks(), self.computed.seconds_since(self.began), self.ended.seconds_since(self.computed)
        )

    def _chunks(self) -> list[ChunkResult]:
        chunks = self.plan.chunks
        if self.choice is None:
            return [ChunkResult()] * len(chunks)
        tokens, logprobs = read_choice(self.choice, [draw for chunk in chunks for draw in chunk.draws])
        ends = [*accumulate(len(chunk.draws) for chunk in chunks)]
        return [ChunkResult(tokens[begin:end], logprobs[begin:end]) for begin, end in pairwise([0, *ends])]


@contextmanager
def _device_errors() -> Iterator[None]:
    """Raise DeviceLostError for an error from which a device never recovers, such as an illegal memory access."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLostError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Batch:
    """A plan as tensors on the device. Chunks are sorted by their number of tokens, as `BatchLayout` requires."""

    tokens: Tensor
    """[tokens] int64; the entries at `places` are not known yet."""
    layout: BatchLayout
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
    columns = {name: torch.tensor(column, dtype=torch.int64) for name, column in integers.items()}
    arrived = stage_named(columns | layout.tensors(), device)
    return Batch(layout=layout.with_tensors({name: arrived.pop(name) for name in layout.tensors()}), **arrived)


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
    positions = torch.tensor([*chain.from_iterable(ranges)])
    sequence = torch.repeat_interleave(torch.tensor(counts))
    return BatchLayout(
        query_starts=torch.tensor([0, *accumulate(counts)], dtype=torch.int32),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        block_table=table,
        slots=_slots(table, sequence, positions, block_size),
        positions=positions,
        singles=counts.count(1),
        max_query=max(counts),
        max_context=max(contexts),
    )


def _block_table(chunks: Sequence[Chunk], width: int) -> Tensor:
    # NumPy reads a list of integers several times as fast as torch does.
    table = np.zeros((len(chunks), width), np.int32)
    for row, chunk in zip(table, chunks, strict=True):
        blocks = chunk.blocks[:width]
        row[: len(blocks)] = blocks
    return torch.from_numpy(table)


def _slots(table: Tensor, sequence: Tensor, positions: Tensor, block_size: int) -> Tensor:
    blocks = table[sequence, positions // block_size].long()
    return blocks * block_size + positions % block_size


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
