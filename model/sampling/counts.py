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
        for draw in fresh:
            known, output = (np.asarray(tokens, np.int64) for tokens in (draw.prompt, draw.output))
            distinct, places = np.unique(np.concatenate([known, output]), return_inverse=True)
            times = np.bincount(places[len(known) :], minlength=len(distinct))
            self._read[draw.row] = len(np.unique(known))
            columns = [torch.from_numpy(column.astype(np.int32)) for column in (distinct, times)]
            row, counts = draw.row, self._counts
            tokens, counted = stage(columns, self._device)
            counts.tokens[row, : len(tokens)] = tokens
            counts.times[row, : len(tokens)] = counted
            counts.lengths[row] = len(tokens)

    def add(self, draws: Draws, rows: Sequence[int], tokens: Tensor) -> None:
        """Count the drawn token, of `tokens` [draws] int64, of the draws with these indices; a failed one as none."""
        requests = [draws.rows[row] for row in rows]
        index, owners = stage([host_tensor(rows, np.int64), host_tensor(requests, np.int64)], self._device)
        self._backend.count_tokens(self._narrow(draws, rows, 1), owners, tokens.index_select(0, index))

    def penalise(
        self, logits: Tensor, draws: Draws, rows: Sequence[int], penalties: Sequence[tuple[float, float, float]]
    ) -> None:
        """Edit some `rows` of logits [draws, vocab] float32; each has a repetition, presence and frequency penalty."""
        requests = [draws.rows[row] for row in rows]
        index, owners, factors = stage(
            [
                host_tensor(rows, np.int64),
                host_tensor(requests, np.int64),
                torch.from_numpy(np.array(penalties, np.float32).T.copy()),
            ],
            self._device,
        )
        repetition, presence, frequency = factors
        columns = Penalties(rows=index, requests=owners, repetition=repetition, presence=presence, frequency=frequency)
        self._backend.penalise(logits, self._narrow(draws, rows, 0), columns)

    def _narrow(self, draws: Draws, rows: Sequence[int], more: int) -> TokenCounts:
        """The table as far as any of these draws needs it, with room for so many `more` tokens."""
        width = more + max([self._read[draws.rows[row]] + draws.indices[row] for row in rows])
        counts = self._counts
        return TokenCounts(tokens=counts.tokens[:, :width], times=counts.times[:, :width], lengths=counts.lengths)

    def _make_room(self, rows: int) -> None:
        counts = self._counts
        if (missing := rows - len(counts.lengths)) > 0:
            self._counts = counts.map(lambda table: torch.cat([table, table.new_zeros(missing, *table.shape[1:])]))
