"""Counts of the tokens of running requests, kept on the device for penalties.

The device counts drawn tokens itself: the host knows a bound on the length of each row, and need not know the newest
token.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kernels.backend import Backend, Penalties, TokenCounts
from model.contract import Draw, Draws
from model.transfer import host_tensor, stage


class CountTable:
    """A `TokenCounts` with a row for each running request; it grows when a request first needs a row."""

    def __init__(self, capacity: int, backend: Backend, device: torch.device) -> None:
        """Make an empty table. `capacity` is the limit of a request's tokens, prompt and output together."""
        self._backend = backend
        self._device = device
        self._counts = TokenCounts(
            tokens=torch.zeros(0, capacity, dtype=torch.int32, device=device),
            times=torch.zeros(0, capacity, dtype=torch.int32, device=device),
            lengths=torch.zeros(0, dtype=torch.int32, device=device),
        )
        self._read: dict[int, int] = {}
        """Number of distinct prompt tokens in each row."""

    def begin(self, fresh: Sequence[Draw]) -> None:
        """Write the prompt and output so far of each fresh draw into its request's row."""
        if not fresh:
            return
        self._make_room(1 + max(draw.row for draw in fresh))
        known = [self._count(draw) for draw in fresh]
        lengths = torch.tensor([len(tokens) for tokens, _ in known], dtype=torch.int32)
        length_of, *columns = stage([lengths, *(column for pair in known for column in pair)], self._device)
        counts = self._counts
        for index, draw in enumerate(fresh):
            tokens, times = columns[2 * index : 2 * index + 2]
            counts.tokens[draw.row, : len(tokens)] = tokens
            counts.times[draw.row, : len(tokens)] = times
            counts.lengths[draw.row] = length_of[index]

    def _count(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """The distinct tokens of a draw's request, and how often each is in the output, both int32 in host memory."""
        prompt, output = (np.asarray(tokens, np.int64) for tokens in (draw.prompt, draw.output))
        distinct, places = np.unique(np.concatenate([prompt, output]), return_inverse=True)
        times = np.bincount(places[len(prompt) :], minlength=len(distinct))
        self._read[draw.row] = len(np.unique(prompt))
        return torch.from_numpy(distinct.astype(np.int32)), torch.from_numpy(times.astype(np.int32))

    def add(self, draws: Draws, indices: Sequence[int], tokens: Tensor) -> None:
        """Count the drawn token, of `tokens` [draws] int64, of the draws with these indices; a failed one as none."""
        rows = [draws.rows[index] for index in indices]
        places, owners = stage([host_tensor(indices, np.int64), host_tensor(rows, np.int64)], self._device)
        self._backend.count_tokens(self._narrow(draws, indices, 1), owners, tokens.index_select(0, places))

    def penalise(
        self, logits: Tensor, draws: Draws, indices: Sequence[int], penalties: Sequence[tuple[float, float, float]]
    ) -> None:
        """Edit the logits [draws, vocab] float32 of the draws with these indices.

        The penalties are each draw's repetition, presence and frequency penalty.
        """
        rows = [draws.rows[index] for index in indices]
        # Each a tensor of its own, so that all are aligned.
        columns = [host_tensor(column, np.float32) for column in zip(*penalties, strict=True)]
        places, owners, repetition, presence, frequency = stage(
            [host_tensor(indices, np.int64), host_tensor(rows, np.int64), *columns], self._device
        )
        factors = Penalties(rows=places, requests=owners, repetition=repetition, presence=presence, frequency=frequency)
        self._backend.penalise(logits, self._narrow(draws, indices, 0), factors)

    def _narrow(self, draws: Draws, indices: Sequence[int], more: int) -> TokenCounts:
        """The table as far as any of these draws needs it, with room for so many `more` tokens."""
        width = more + max([self._read[draws.rows[index]] + draws.indices[index] for index in indices])
        counts = self._counts
        return TokenCounts(tokens=counts.tokens[:, :width], times=counts.times[:, :width], lengths=counts.lengths)

    def _make_room(self, rows: int) -> None:
        """Have at least so many rows."""
        counts = self._counts
        if (missing := rows - len(counts.lengths)) > 0:
            self._counts = counts.map(lambda table: torch.cat([table, table.new_zeros(missing, *table.shape[1:])]))
