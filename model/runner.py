"""Runs steps: a plan's integers become tensors, the decoder's logits become tokens.

It knows nothing of scheduling: which chunks make a step, and whose they are, is decided before.
"""

import time
from collections.abc import Sequence
from itertools import accumulate, chain

import torch
from torch import Tensor

from kernels.backend import BatchLayout, KVCache
from model.contract import Chunk, ModelLimits, StepPlan, StepResult
from model.decoder import Decoder
from model.sampling import choose


class ModelRunner:
    """`model.contract.Runner` on a decoder and its KV cache."""

    def __init__(self, decoder: Decoder, cache: KVCache, max_context: int) -> None:
        self._decoder = decoder
        self._cache = cache
        self._device = decoder.weights.embedding.device
        self._limits = ModelLimits(decoder.spec.vocab_size, max_context, cache.blocks, cache.block_size)

    @property
    def limits(self) -> ModelLimits:
        return self._limits

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        began = time.perf_counter()
        chunks = sorted(plan.chunks, key=lambda chunk: len(chunk.tokens))  # As the layout wants it.
        layout = batch_layout(chunks, self._cache.block_size, self._device)
        tokens = torch.tensor(list(chain.from_iterable(chunk.tokens for chunk in chunks)), device=self._device)
        hidden = self._decoder.forward(tokens, layout, self._cache)

        last_token = dict(zip(map(id, chunks), accumulate(len(chunk.tokens) for chunk in chunks), strict=True))
        drawing = [chunk for chunk in plan.chunks if chunk.draw is not None]
        rows = torch.tensor([last_token[id(chunk)] - 1 for chunk in drawing], dtype=torch.int64, device=self._device)
        if not drawing:
            return StepResult([], [], forward_seconds=time.perf_counter() - began)
        logits = self._decoder.logits(hidden[rows])
        computed = time.perf_counter()
        draws = [chunk.draw for chunk in drawing if chunk.draw is not None]
        chosen, logprobs = choose(self._decoder.backend, logits, draws)
        return StepResult(chosen, logprobs, computed - began, time.perf_counter() - computed)


def batch_layout(chunks: Sequence[Chunk], block_size: int, device: torch.device) -> BatchLayout:
    """The layout of `chunks`, those with fewer tokens first, in a cache with blocks of `block_size` tokens."""
    counts = [len(chunk.tokens) for chunk in chunks]
    contexts = [chunk.start + count for chunk, count in zip(chunks, counts, strict=True)]
    width = -(-max(contexts) // block_size)
    table = torch.tensor([_padded(chunk.blocks, width) for chunk in chunks], dtype=torch.int32)
    positions = torch.tensor(
        [*chain.from_iterable(range(c.start, end) for c, end in zip(chunks, contexts, strict=True))]
    )
    sequence = torch.repeat_interleave(torch.tensor(counts))
    slots = _slots(table, sequence, positions, block_size)
    return BatchLayout(
        query_starts=torch.tensor([0, *accumulate(counts)], dtype=torch.int32).to(device),
        context_lens=torch.tensor(contexts, dtype=torch.int32).to(device),
        block_table=table.to(device),
        slots=slots.to(device),
        positions=positions.to(device),
        singles=counts.count(1),
        max_query=max(counts),
        max_context=max(contexts),
    )


def _padded(blocks: Sequence[int], width: int) -> list[int]:
    return [*blocks[:width], *[0] * (width - len(blocks))]


def _slots(table: Tensor, sequence: Tensor, positions: Tensor, block_size: int) -> Tensor:
    blocks = table[sequence, positions // block_size].long()
    return blocks * block_size + positions % block_size
