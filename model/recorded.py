"""A forward pass that is recorded once and replayed for batches of any shape, with the decoder's own interface.

The decoder makes hundreds of calls for every token, and in a small model these take longer than the arithmetic.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.backend import AttentionOptions, BatchLayout, KVCache, LayerCache, RecordingBackend
from model.decoder import Decoder, Probe

WATCHED_TOKENS = 64
"""Limit of tokens in a replayed batch that is looked at. All that a probe may see has memory of its own, and in larger
batches the decoder's calls take little of the time."""


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
        self._plain = _Recording(decoder, backend, cache, max_tokens, None)
        self._seen = _Seen()
        self._watched = _Recording(decoder, backend, cache, min(max_tokens, WATCHED_TOKENS), self._seen)

    def forward(self, tokens: Tensor, layout: BatchLayout, cache: KVCache, probe: Probe | None = None) -> Tensor:
        """See `Decoder.forward`. The next call overwrites the returned tensor.

        A probe may look when the whole pass is over: it is shown all that it would have seen, in the same order.
        """
        recording = self._plain if probe is None else self._watched
        if cache is not self._cache or len(tokens) > recording.max_tokens:
            return self._decoder.forward(tokens, layout, cache, probe)
        self.backend.replay(recording.program, tokens, layout)
        if probe is not None:
            self._seen.show(probe, len(tokens))
        return recording.hidden[: len(tokens)]


class _Recording:
    """A forward pass of up to `max_tokens` tokens."""

    def __init__(
        self, decoder: Decoder, backend: RecordingBackend, cache: KVCache, max_tokens: int, probe: Probe | None
    ) -> None:
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
        self.max_tokens = max_tokens
        self.program: Any
        self.program, self.hidden = backend.record(lambda: decoder.forward(batch, layout, cache, probe))


class _Seen:
    """All that probes may see in a recorded pass; the program does not reuse the memory of the tensors kept here."""

    def __init__(self) -> None:
        self._shown: list[Callable[[Probe, int], None]] = []
        """Functions that show a probe one thing each, for a number of tokens, in the order of the pass."""

    def attention(self, layer: int, q: Tensor, cache: LayerCache, options: AttentionOptions) -> None:
        """See `Probe.attention`."""
        self._shown.append(lambda probe, tokens: probe.attention(layer, q[:tokens], cache, options))

    def stream(self, residual: Tensor) -> None:
        """See `Probe.stream`."""
        self._shown.append(lambda probe, tokens: probe.stream(residual[:tokens]))

    def show(self, probe: Probe, tokens: int) -> None:
        """Show a probe all of it, for the first `tokens` tokens."""
        for show in self._shown:
            show(probe, tokens)
