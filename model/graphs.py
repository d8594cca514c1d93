"""Decoding steps replayed from captured graphs, behind the decoder's own signature.

A decoding step computes little for each of its hundreds of kernels, so that starting them one by one from the host
takes longer than running them. A graph starts them all at once, but with the shapes and addresses that it was captured
with: a batch is copied into the static buffers of the next larger bucket and padded. How a graph is captured, and what
a layer computes, is not known here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from kernels.backend import BatchLayout, KVCache
from model.decoder import Decoder

Replay = Callable[[], Tensor]
"""Computes anew what was captured, and returns the same tensor every time."""
Capture = Callable[[Callable[[], Tensor]], Replay]
"""Captures a function that reads and writes the same memory whenever it is called."""


def buckets(most: int) -> tuple[int, ...]:
    """Batch sizes to capture, up to `most`: powers of two, and from 16 on what lies midway between them."""
    sizes = {2**power for power in range(most.bit_length())} | {3 * 2**power for power in range(3, most.bit_length())}
    return (*sorted(size for size in sizes if size < most), most)


class CudaCapture:
    """Captures CUDA graphs, all in one memory pool: they are never replayed at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        function()  # Kernels are compiled and loaded at their first use, which a capture does not allow.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = function()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class GraphedDecoder:
    """A decoder that replays graphs for batches of decoding sequences over one cache, and computes the rest itself.

    The output projection is not in the graphs: which rows it is for is known to the caller alone, and it is started
    while the graph still runs.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, *, max_batch: int, max_context: int, capture: Capture) -> None:
        """`max_batch` is the most sequences that are replayed, `max_context` the most tokens of one.

        A graph is captured when a batch first needs it. The block tables of all have room for `max_context` tokens,
        so that one graph serves every length.
        """
        self.spec = decoder.spec
        self.weights = decoder.weights
        self.backend = decoder.backend
        self.logits = decoder.logits
        self._decoder = decoder
        self._cache = cache
        self._capture = capture
        self._buckets = buckets(max_batch)
        self._static = _StaticBatch.of(max_batch, max_context, cache.block_size, decoder.weights.device)
        self._replays: dict[int, Replay] = {}

    def forward(self, tokens: Tensor, layout: BatchLayout, cache: KVCache) -> Tensor:
        """See `Decoder.forward`. What comes back may be overwritten by the next call, in the device's order of work."""
        static = self._static.layout
        fits = layout.max_context <= static.max_context and len(tokens) <= len(self._static.tokens)
        if cache is not self._cache or layout.max_query > 1 or not fits:
            return self._decoder.forward(tokens, layout, cache)
        bucket = next(size for size in self._buckets if size >= len(tokens))
        self._static.fill(bucket, tokens, layout)
        if bucket not in self._replays:
            batch = self._static.first(bucket)
            self._replays[bucket] = self._capture(
                partial(self._decoder.forward, batch.tokens, batch.layout, self._cache)
            )
        return self._replays[bucket]()[: len(tokens)]


@dataclass(frozen=True, slots=True)
class _StaticBatch:
    """Decoding sequences at addresses that stay the same; graphs of all sizes read their first ones."""

    tokens: Tensor
    layout: BatchLayout

    @classmethod
    def of(cls, size: int, max_context: int, block_size: int, device: torch.device) -> "_StaticBatch":
        """All padding."""
        width = -(-max_context // block_size)
        layout = BatchLayout(
            query_starts=torch.arange(size + 1, dtype=torch.int32, device=device),
            context_lens=torch.zeros(size, dtype=torch.int32, device=device),
            block_table=torch.zeros(size, width, dtype=torch.int32, device=device),
            slots=torch.full((size,), -1, device=device),
            positions=torch.zeros(size, dtype=torch.int64, device=device),
            singles=size,
            max_query=1,
            max_context=width * block_size,
        )
        return cls(torch.zeros(size, dtype=torch.int64, device=device), layout)

    def first(self, size: int) -> "_StaticBatch":
        """Views of the first `size` sequences."""
        views = {name: tensor[:size] for name, tensor in self.layout.tensors().items()}
        views["query_starts"] = self.layout.query_starts[: size + 1]
        return _StaticBatch(self.tokens[:size], replace(self.layout.with_tensors(views), singles=size))

    def fill(self, size: int, tokens: Tensor, layout: BatchLayout) -> None:
        """Copy a batch of decoding sequences to the front, and make what follows up to `size` padding."""
        count, static = len(tokens), self.layout
        for place, values, padding in (
            (self.tokens, tokens, 0),
            (static.context_lens, layout.context_lens, 0),
            (static.slots, layout.slots, -1),
            (static.positions, layout.positions, 0),
        ):
            place[:count].copy_(values)
            place[count:size].fill_(padding)
        # Whatever else is in the table is a block of the cache, and lies beyond its sequence's context.
        static.block_table[:count, : layout.block_table.shape[1]].copy_(layout.block_table)
