"""Steps replayed from captured CUDA graphs, with the decoder's own interface.

Each of the hundreds of kernels of a decoding step, or of one with short prompts, computes little, so the host takes
longer to start them one by one than the device to run them. A graph starts all of them with one call, but only with the
shapes and addresses of its capture. A batch is therefore copied into static buffers and padded to the next larger of a
few captured shapes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.backend import BatchLayout, KVCache
from model.decoder import Decoder, FullPass, Probe

Replay = Callable[[], Tensor]
"""Runs a captured computation again; every call returns the same tensor, with new contents."""
Capture = Callable[[Callable[[], Tensor]], Replay]
"""Captures a function, which must read and write the same memory at every call."""


PROMPT_TOKENS = (64, 128, 256, 512)
"""Sizes to capture of all new tokens of prompts in a step. More tokens keep the device busy while the host starts their
kernels."""
PROMPTS = 8
"""Limit of prompts in a captured step."""
BESIDE_PROMPTS = (0, 8, 64)
"""Numbers of decoding sequences to capture beside prompts: few, since prompts have more tokens."""


class Shape(NamedTuple):
    """The size of a captured step."""

    singles: int
    """Number of sequences with one new token."""
    prompt_tokens: int
    """Number of the other sequences' new tokens; 0 if there are none of these sequences."""


def shapes(most: int, token_budget: int) -> tuple[Shape, ...]:
    """The shapes to capture of steps with up to `most` sequences that have one new token, and `token_budget` tokens.

    They are in the order in which a batch takes the first that has room for it.
    """
    beside = [*(size for size in BESIDE_PROMPTS if size < most), most]
    mixed = (Shape(size, tokens) for tokens in PROMPT_TOKENS for size in beside if size + tokens <= token_budget)
    return (*(Shape(size, 0) for size in buckets(most)), *mixed)


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


class GraphedDecoder(FullPass):
    """A decoder that replays graphs for batches of decoding sequences and short prompts, and runs the plain decoder for
    all others.

    The graphs hold no output projection: only the caller knows the rows that need logits. The host starts the
    projection while the graph still runs.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        *,
        max_batch: int,
        max_context: int,
        capture: Capture,
        token_budget: int,
    ) -> None:
        """Allocate static buffers for `max_batch` decoding sequences of up to `max_context` tokens in `cache`.

        Padding included, no captured step has more than `token_budget` tokens, unless all its sequences decode.

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
        self._shapes = shapes(max_batch, token_budget)
        self._buffers = _Buffers.of(max_batch, max_context, cache.block_size, decoder.weights.device)
        self._batches: dict[Shape, _StaticBatch] = {}
        self._replays: dict[Shape, Replay] = {}

    def forward(self, tokens: Tensor, layout: BatchLayout, cache: KVCache, probe: Probe | None = None) -> Tensor:
        """See `Decoder.forward`. The next call may overwrite the returned tensor, in the device's order of work."""
        shape = self._shape(layout, len(tokens))
        if probe is not None or cache is not self._cache or shape is None:
            return self._decoder.forward(tokens, layout, cache, probe)
        if shape not in self._batches:
            self._batches[shape] = self._buffers.batch(shape)
        batch = self._batches[shape]
        batch.fill(tokens, layout)
        if shape not in self._replays:
            self._replays[shape] = self._capture(
                partial(self._decoder.forward, batch.tokens, batch.layout, self._cache)
            )
        return batch.own(self._replays[shape](), layout.singles, len(tokens))

    def _shape(self, layout: BatchLayout, tokens: int) -> Shape | None:
        """The shape that a batch of so many tokens is padded to; None if there is none."""
        singles, sequences = layout.singles, layout.context_lens.shape[0]
        if layout.max_context > self._buffers.max_context or sequences - singles > PROMPTS:
            return None
        for shape in self._shapes:
            room = shape.singles >= singles and shape.prompt_tokens >= tokens - singles
            if room and (tokens == singles) == (shape.prompt_tokens == 0):
                return shape
        return None


@dataclass(frozen=True, slots=True)
class _StaticBatch:
    """A batch at fixed addresses: sequences with one new token, and behind them, if there are any, PROMPTS others.

    Sequences that a step does not fill are padding. A last one behind the prompts has all tokens that these leave.
    """

    tokens: Tensor
    layout: BatchLayout

    def fill(self, tokens: Tensor, layout: BatchLayout) -> None:
        """Copy a batch into the places of its sequences and tokens, and turn the others into padding."""
        static, singles = self.layout, layout.singles
        for place, values, padding in (
            (self.tokens, tokens, 0),
            (static.slots, layout.slots, -1),
            (static.positions, layout.positions, 0),
            (static.context_lens, layout.context_lens, 0),
        ):
            _put(place[: static.singles], values[:singles], padding)
            _put(place[static.singles :], values[singles:], padding)
        # Other entries of the table keep old block indices. They lie beyond their sequence's context and go unread.
        table, width = static.block_table, layout.block_table.shape[1]
        prompts = layout.block_table.shape[0] - singles
        table[:singles, :width].copy_(layout.block_table[:singles])
        if prompts:
            table[static.singles : static.singles + prompts, :width].copy_(layout.block_table[singles:])
            ends = layout.query_starts[singles + 1 :] + (static.singles - singles)
            _put(static.query_starts[static.singles + 1 : -1], ends, ends[-1])

    def own(self, rows: Tensor, singles: int, tokens: int) -> Tensor:
        """The rows of the `tokens` that were copied last, among the batch's rows [tokens, ...] with padding."""
        if singles == self.layout.singles or tokens == singles:
            return rows[:tokens]
        begin = self.layout.singles
        return torch.cat([rows[:singles], rows[begin : begin + tokens - singles]])


def _put(place: Tensor, values: Tensor, padding: int | Tensor) -> None:
    """Copy values to the front of a place, and fill the rest with padding."""
    count = len(values)
    if count:
        place[:count].copy_(values)
    if count < len(place):
        place[count:].fill_(padding)


@dataclass(frozen=True, slots=True)
class _Buffers:
    """The memory that the batches of all shapes share, since each is filled anew before it is used."""

    tokens: Tensor
    """[tokens] int64; slots and positions alike."""
    slots: Tensor
    positions: Tensor
    context_lens: Tensor
    """[sequences] int32."""
    block_table: Tensor
    """[sequences, blocks] int32."""
    max_context: int

    @classmethod
    def of(cls, max_batch: int, max_context: int, block_size: int, device: torch.device) -> "_Buffers":
        """Buffers for `max_batch` sequences with one new token, beside prompts."""
        width = -(-max_context // block_size)
        tokens, slots, positions = (
            torch.zeros(max_batch + PROMPT_TOKENS[-1], dtype=torch.int64, device=device) for _ in range(3)
        )
        sequences = max_batch + PROMPTS + 1
        lens = torch.zeros(sequences, dtype=torch.int32, device=device)
        table = torch.zeros(sequences, width, dtype=torch.int32, device=device)
        return cls(tokens, slots, positions, lens, table, width * block_size)

    def batch(self, shape: Shape) -> _StaticBatch:
        """The batch of a shape, in this memory."""
        tokens = shape.singles + shape.prompt_tokens
        sequences = shape.singles + (PROMPTS + 1 if shape.prompt_tokens else 0)
        starts = torch.arange(sequences + 1, dtype=torch.int32, device=self.tokens.device)
        starts[-1] = tokens
        layout = BatchLayout(
            query_starts=starts,
            context_lens=self.context_lens[:sequences],
            block_table=self.block_table[:sequences],
            slots=self.slots[:tokens],
            positions=self.positions[:tokens],
            singles=shape.singles,
            max_query=max(1, shape.prompt_tokens),
            max_context=self.max_context,
        )
        return _StaticBatch(self.tokens[:tokens], layout)
