"""A forward pass that is recorded once and replayed for batches of any shape, with the decoder's own interface.

The decoder makes hundreds of calls for every token, and in a small model these take longer than the arithmetic.
"""

import torch
from torch import Tensor

from kernels.backend import BatchLayout, KVCache, RecordingBackend
from model.decoder import Decoder, Probe


class RecordedDecoder:
    """A decoder whose forward pass over one cache is recorded, for batches of up to `max_tokens` tokens."""

    def __init__(self, decoder: Decoder, backend: RecordingBackend, cache: KVCache, max_tokens: int) -> None:
        self.spec = decoder.spec
        self.weights = decoder.weights
        self.backend = backend
        self.logits = decoder.logits
        self.lens = decoder.lens
        self._decoder = decoder
        self._cache = cache
        self._max_tokens = max_tokens
        # The recorded batch matters only by its number of tokens, which is the room in the program's buffers.
        batch = torch.zeros(max_tokens, dtype=torch.int64)
        rows = torch.zeros(2, dtype=torch.int32)
        layout = BatchLayout(
            query_starts=rows,
            context_lens=rows[:1],
            block_table=rows.view(1, -1),
            slots=batch,
            positions=batch,
            singles=0,
            max_query=max_tokens,
            max_context=max_tokens,
        )
        self._program, self._hidden = backend.record(lambda: decoder.forward(batch, layout, cache))

    def forward(self, tokens: Tensor, layout: BatchLayout, cache: KVCache, probe: Probe | None = None) -> Tensor:
        """See `Decoder.forward`. The next call overwrites the returned tensor."""
        if probe is not None or cache is not self._cache or len(tokens) > self._max_tokens:
            return self._decoder.forward(tokens, layout, cache, probe)
        self.backend.replay(self._program, tokens, layout)
        return self._hidden[: len(tokens)]
