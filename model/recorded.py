"""A forward pass that is recorded once and replayed for batches of any shape, with the decoder's own interface.

The decoder makes hundreds of calls for every token, and in a small model these take longer than the arithmetic.
"""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from kernels.backend import AttentionOptions, BatchLayout, KVCache, LayerCache, RecordingBackend, SamplingBatch
from model.decoder import Decoder, FullPass, Passed, Probe, Rows

HEAD_ROWS = 64
"""Limit of rows whose logits a replayed pass computes too, and has memory for."""
KEPT_ROWS = 64
"""Limit of tokens whose rows a replayed pass keeps for a probe; with more of them the calls take little of the time."""


class Kept:
    """`model.decoder.Probe` that has a recording keep the rows of some tokens, which are named at each replay."""

    def __init__(self, backend: RecordingBackend) -> None:
        self.places = torch.empty(0, dtype=torch.int64)
        self._backend = backend
        self._attention: list[tuple[int, Tensor, LayerCache, AttentionOptions]] = []
        self._streams: list[Tensor] = []

    def attention(self, layer: int, q: Rows, cache: LayerCache, options: AttentionOptions) -> None:
        """See `Probe.attention`."""
        self._attention.append((layer, self._backend.keep(q.tensor, KEPT_ROWS), cache, options))

    def stream(self, residual: Rows) -> None:
        """See `Probe.stream`."""
        self._streams.append(self._backend.keep(residual.tensor, KEPT_ROWS))

    def show(self, probe: Probe, tokens: int) -> None:
        """Show a probe its rows of a batch with so many tokens. The cache has all of the batch's keys already."""
        kept = torch.zeros(tokens, dtype=torch.int64)
        kept[probe.places] = torch.arange(len(probe.places))
        for layer, q, cache, options in self._attention:
            probe.attention(layer, Rows(q, kept), cache, options)
        for residual in self._streams:
            probe.stream(Rows(residual, kept))


class RecordedDecoder(FullPass):
    """A decoder whose forward pass over one cache is recorded, for batches of up to `max_tokens` tokens.

    The logits of a few rows, and the draws from them, are part of the recording.

    A second recording keeps the rows of some tokens, which are shown to a probe afterwards. It makes the same numbers,
    so that nobody else in the batch notices the probe.
    """

    def __init__(self, decoder: Decoder, backend: RecordingBackend, cache: KVCache, max_tokens: int) -> None:
        self.spec = decoder.spec
        self.weights = decoder.weights
        self.backend = backend
        self.logits = decoder.logits
        self.final_norm = decoder.final_norm
        self._decoder = decoder
        self._cache = cache
        self._program, (self._hidden, self._head) = self._record(max_tokens, None)
        self._kept = Kept(backend)
        self._probed_program, (self._probed_hidden, _) = self._record(max_tokens, self._kept)

    def _record(self, tokens: int, probe: Probe | None) -> tuple[Any, tuple[Tensor, Tensor]]:
        """The program of a pass, its hidden rows [tokens, hidden], and the output projection of HEAD_ROWS of them.

        Its draws have a meaning only where logits have no soft cap.

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

        def passes() -> tuple[Tensor, Tensor]:
            hidden = self._decoder.forward(batch, layout, self._cache, probe)
            chosen = self.backend.narrow(hidden, HEAD_ROWS)
            head = self.backend.linear(chosen, self.weights.output)
            self.backend.sample(head, SamplingBatch(**{field.name: batch for field in fields(SamplingBatch)}))
            return hidden, head

        return self.backend.record(passes)

    def forward(self, tokens: Tensor, layout: BatchLayout, cache: KVCache, probe: Probe | None = None) -> Tensor:
        """See `Decoder.forward`. The next call overwrites the returned tensor."""
        if not self._fits(tokens, cache):
            return self._decoder.forward(tokens, layout, cache, probe)
        if probe is None:
            self.backend.replay(self._program, tokens, layout)
            return self._hidden[: len(tokens)]
        if len(probe.places) > KEPT_ROWS:
            return self._decoder.forward(tokens, layout, cache, probe)
        self.backend.replay(self._probed_program, tokens, layout, probe.places)
        self._kept.show(probe, len(tokens))
        return self._probed_hidden[: len(tokens)]

    def run(
        self,
        tokens: Tensor,
        layout: BatchLayout,
        cache: KVCache,
        probe: Probe | None = None,
        rows: Tensor | None = None,
        sampling: SamplingBatch | None = None,
    ) -> Passed:
        """See `FullPass.run`."""
        if probe is not None or rows is None or rows.shape[0] > HEAD_ROWS or not self._fits(tokens, cache):
            return super().run(tokens, layout, cache, probe, rows, sampling)
        if self.spec.logit_softcap is not None:
            sampling = None
        drawn = self.backend.replay(self._program, tokens, layout, chosen=rows, sampling=sampling)
        if drawn is not None:
            return Passed(self._hidden, None, drawn)
        return Passed(self._hidden, self._decoder.capped(self._head[: len(rows)]))

    def _fits(self, tokens: Tensor, cache: KVCache) -> bool:
        """Whether a pass over these tokens [tokens] and this cache is recorded."""
        return cache is self._cache and tokens.shape[0] <= self._hidden.shape[0]
