"""The embedding as a table of rows: how long they are, and which are near which. Knows nothing of positions."""

from functools import cached_property

import torch
from torch import Tensor

from kernels.backend import Backend, Linear
from model.weights import DecoderWeights

SLICE_BYTES = 64 * 2**20
"""Bytes of float32 numbers that are computed at once."""


class EmbeddingTable:
    """The rows of a decoder's embedding, before any scale, norm or position."""

    def __init__(self, weights: DecoderWeights, vocab_size: int, backend: Backend) -> None:
        self._table = weights.embedding
        self._device = weights.device
        self._vocab_size = vocab_size
        self._backend = backend

    def rows(self, tokens: Tensor) -> Tensor:
        """The rows [tokens, hidden] float32 of token ids [tokens] int64."""
        return self._backend.embed(tokens, torch.zeros_like(tokens), self._table, 1.0, None).float()

    @cached_property
    def norms(self) -> Tensor:
        """[vocab] float32: the L2 norm of each row."""
        ids = torch.arange(self._vocab_size, device=self._device)
        width = self.rows(ids[:1]).shape[1]
        return torch.cat([self.rows(part).norm(dim=-1) for part in ids.split(max(1, SLICE_BYTES // (4 * width)))])

    def nearest(self, tokens: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """The `top` other tokens with the largest cosine to each of `tokens`.

        `tokens` are [tokens] int64; returns cosines [tokens, top] float32 and token ids [tokens, top] int64.
        """
        parts = [self._nearest(part, top) for part in tokens.split(max(1, SLICE_BYTES // (4 * self._vocab_size)))]
        cosines, ids = zip(*parts, strict=True)
        return torch.cat(cosines), torch.cat(ids)

    def _nearest(self, tokens: Tensor, top: int) -> tuple[Tensor, Tensor]:
        # A row of zeros is near nothing.
        lengths = self.norms.clamp(min=torch.finfo(torch.float32).tiny)
        cosines = self._products(self.rows(tokens) / lengths[tokens, None]) / lengths
        found = cosines.scatter(1, tokens[:, None], float("-inf")).topk(min(top, self._vocab_size - 1))
        return found.values, found.indices

    def _products(self, rows: Tensor) -> Tensor:
        """The products [rows, vocab] float32 of rows [rows, hidden] with all of the table's."""
        if isinstance(self._table, Linear):
            return self._backend.linear(rows, self._table).float()
        step = max(1, SLICE_BYTES // (4 * rows.shape[1]))
        return torch.cat([rows @ part.float().T for part in self._table.split(step)], dim=1)
