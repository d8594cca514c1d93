"""A forward pass that is recorded once and replayed for batches of any shape, with the decoder's own interface.

The decoder makes hundreds of calls for every token, and in a small model these take longer than the arithmetic.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.backend import AttentionOptions, BatchLayout, KVCache, LayerCache, RecordingBackend
from model.decoder import Decoder, Probe

SEEN_TOKENS = 64
"""Tokens of the largest batch whose inside stays in memory; in larger ones the calls take little of the time."""


class Kept:
    """`model.decoder.Probe` that keeps all that it is shown, so that a recording does not use its memory again."""

    def __init__(self) -> None:
        self._attention: list[tuple[int, Tensor, LayerCache, AttentionOptions]] = []
        self._streams: list[Tensor] = []

    def attention(self, layer: int, q: Tensor, cache: LayerCache, options: AttentionOptions) -> None:
        """See `Probe.attention`."""
        self._attention.append((layer, q, cache, options))

    def stream(self, residual: Tensor) -> None:
        """See `Probe.stream`."""
        self._streams.append(residual)

    def show(self, probe: Probe) -> None:
        """Show another probe what the tensors hold now. The cache has all of the batch's keys already."""
        for layer, q, cache, options in self._attention:
            probe.attention(layer, q, cache, options)
        for residual in self._streams:
            probe.stream(residual)


class RecordedDecoder:
    """A decoder whose forward pass over one cache is recorded, for batches of up to `max_tokens` tokens.

    A second recording, for small batches, leaves its inside in memory, where a probe looks at it afterwards. It makes
    the same numbers, so that nobody else in the batch notices that somebody looks.
    """

    def __init__(self, decoder: Decoder, backend: RecordingBackend, cache: KVCache, max_tokens: int) -> None:
        self.spec = decoder.spec
        self.weights = decoder.weights
        self.backend = backend
        self.logits = decoder.logits
        self.final_norm = decoder.final_norm
        self._decoder = decoder
        self._cache = cache
        self._program, self._hidden = self._record(max_tokens, None)
        self._kept = Kept()
        self._seen_program, self._seen_hidden = self._record(min(SEEN_TOKENS, max_tokens), self._kept)

    def _record(self, tokens: int, probe: Probe | None) -> tuple[Any, Tensor]:
        """The program of a forward pass, and its hidden rows [tokens, hidden].

        The recorded batch matters only by its number of tokens, which is the room in the program's buffers.
        """
        batch = torch.zeros(tokens, dtype=torch.int64)
        rows = torch.zeros(2, dtype=torch.int32)
        layout = BatchLayout(
            query_starts=rows,
            context_lens=rows[:1],
            block_table=rows.view(1, -1),
            slots=batch,
            positions=batch,
            singles=0,
            max_query=tokens,
            max_context=tokens,
        )
        return self.backend.record(lambda: self._decoder.forward(batch, layout, self._cache, probe))

    def forward(self, tokens: Tensor, layout: BatchLayout, cache: KVCache, probe: Probe | None = None) -> Tensor:
        """See `Decoder.forward`. The next call overwrites the returned tensor."""
        program, hidden = self._program, self._hidden
        if probe is not None:
            program, hidden = self._seen_program, self._seen_hidden
        if cache is not self._cache or len(tokens) > len(hidden):
            return self._decoder.forward(tokens, layout, cache, probe)
        self.backend.replay(program, tokens, layout)
        if probe is not None:
            self._kept.show(probe)
        return hidden[: len(tokens)]
