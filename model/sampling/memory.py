"""Memory of running requests on the device, for draws that depend on their tokens.

Each request has a row for as long as it runs. The device adds drawn tokens itself: the host need not know the newest
token.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kernels.backend import Backend
from model.contract import Draw, Draws
from model.sampling.counts import CountTable
from model.transfer import stage


class TokenMemory:
    """Tables of tokens, one row for each running request; they grow when a request first needs a row."""

    def __init__(self, capacity: int, backend: Backend, device: torch.device) -> None:
        """Make empty tables. `capacity` is the limit of a request's tokens, prompt and output together."""
        self.backend = backend
        self.counts = CountTable(capacity, backend, device)
        """Counts of the tokens of requests with penalties."""
        self._outputs = torch.zeros(0, capacity, dtype=torch.int64, device=device)
        """The outputs of requests that ban runs of tokens."""

    def begin(self, draws: Sequence[Draw]) -> None:
        """Write the tokens so far of each fresh draw into its row, if the request needs them."""
        fresh = [draw for draw in Draws.of(draws).others if draw.fresh]
        self.counts.begin([draw for draw in fresh if draw.params.penalises])
        banning = [draw for draw in fresh if draw.params.bans_runs]
        if not banning:
            return
        self._make_room(1 + max(draw.row for draw in banning))
        known = [torch.from_numpy(np.asarray(draw.output, np.int64)) for draw in banning]
        for draw, tokens in zip(banning, stage(known, self._outputs.device), strict=True):
            self._outputs[draw.row, : len(tokens)] = tokens

    def add(self, draws: Sequence[Draw], tokens: Tensor) -> None:
        """Add each drawn token of `tokens` [draws] int64 to its request's row; a failed draw adds any, or none."""
        columns = Draws.of(draws)
        penalised = [index for index, params in enumerate(columns.params) if params.penalises]
        if penalised:
            self.counts.add(columns, penalised, tokens)
        banning = [index for index, params in enumerate(columns.params) if params.bans_runs]
        if banning:
            places = [[columns.rows[index] for index in banning], [columns.indices[index] for index in banning]]
            sources, rows, ends = stage([torch.tensor(column) for column in (banning, *places)], tokens.device)
            self._outputs[rows, ends] = tokens.index_select(0, sources).clamp(min=0)

    def recent(self, draws: Sequence[Draw], count: int) -> Tensor:
        """The last `count` output tokens of the requests of `draws` [draws, count]; -1 before the first.

        Each request must ban runs of tokens.
        """
        columns = [[draw.row for draw in draws], [draw.index for draw in draws]]
        rows, ends = stage([torch.tensor(column) for column in columns], self._outputs.device)
        places = ends[:, None] + torch.arange(-count, 0, device=self._outputs.device)
        tokens = self._outputs[rows[:, None], places.clamp(min=0)]
        return tokens.masked_fill(places < 0, -1)

    def _make_room(self, rows: int) -> None:
        missing = rows - len(self._outputs)
        if missing > 0:
            self._outputs = torch.cat([self._outputs, self._outputs.new_zeros(missing, self._outputs.shape[1])])
