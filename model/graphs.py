"""Decoding steps replayed from captured CUDA graphs, with the decoder's own interface.

Each of a decoding step's hundreds of kernels computes little, so the host takes longer to start them one by one than
the device to run them. A graph starts all of them with one call, but only with the shapes and addresses of its capture.
A batch is therefore copied into static buffers and padded to the next larger of a few captured sizes (buckets).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from kernels.backend import BatchLayout, KVCache
from model.decoder import Decoder, Probe

Replay = Callable[[], Tensor]
"""Runs a captured computation again; every call returns the same tensor, with new contents."""
Capture = Callable[[Callable[[], Tensor]], Replay]
"""Captures a function, which must read and write the same memory at every call."""


def buckets(most: int) -> tuple[int, ...]:
    """Batch sizes to capture, ascending, the last of them `most`: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, ..."""
    sizes = {2**power for power in range(most.bit_length())} | {3 * 2**power for power in range(3, most.bit_length())}
    return (*sorted(size for size in sizes if size < most), most)


class CudaCapture:
    """Captures CUDA graphs. All share one memory pool, which is safe since no two are replayed at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        function()  # A first call compiles and loads the kernels, which cannot be done during a capture.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = function()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class GraphedDecoder:
    """A decoder that replays graphs for batches of decoding sequences, and runs the plain decoder for all others.

    The graphs hold no output projection: only the caller knows the rows that need logits. The host starts the
    projection while the graph still runs.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, *, max_batch: int, max_context: int, capture: Capture) -> None:
        """Allocate static buffers for `max_batch` sequences of up to `max_context` tokens in `cache`.

        Each graph is captured when a batch first needs it. Its block table has room for `max_context` tokens, so that
        one graph serves sequences of every length.
        """
        self.spec = decoder.spec
        self.weights = decoder.weights
        self.backend = decoder.backend
        self.logits = decoder.logits
        self.final_norm = decoder.final_norm
        self._decoder = decoder
        self._cache = cache
        self._capture = capture
        self._buckets = buckets(max_batch)
        self._static = _StaticBatch.of(max_batch, max_context, cache.block_size, decoder.weights.device)
        self._replays: dict[int, Replay] = {}

    def forward(self, tokens: Tensor, layout: BatchLayout, cache: KVCache, probe: Probe | None = None) -> Tensor:
        """See `Decoder.forward`. The next call may overwrite the returned tensor, in the device's order of work."""
        static = self._static.layout
        fits = layout.max_context <= static.max_context and len(tokens) <= len(self._static.tokens)
        if probe is not None or cache is not self._cache or layout.max_query > 1 or not fits:
            return self._decoder.forward(tokens, layout, cache, probe)
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
    """Static buffers of a batch of decoding sequences; the graph of size n reads the first n of them."""

    tokens: Tensor
    layout: BatchLayout

    @classmethod
    def of(cls, size: int, max_context: int, block_size: int, device: torch.device) -> "_StaticBatch":
        """A batch of `size` padding sequences."""
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
        """Copy a batch of decoding sequences to the front, and turn the others up to `size` into padding."""
        count, static = len(tokens), self.layout
        for place, values, padding in (
            (self.tokens, tokens, 0),
            (static.context_lens, layout.context_lens, 0),
            (static.slots, layout.slots, -1),
            (static.positions, layout.positions, 0),
        ):
            place[:count].copy_(values)
            place[count:size].fill_(padding)
        # Other entries of the table keep old block indices. They lie beyond their sequence's context and go unread.
        static.block_table[:count, : layout.block_table.shape[1]].copy_(layout.block_table)
