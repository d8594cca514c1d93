"""The tokens of running requests, kept on the device for draws that depend on them (penalties).

Each request has a row of the table for as long as it runs. The device adds drawn tokens itself: the host knows the
length of each row, and need not know the newest token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.contract import Draw, Draws
from model.transfer import stage


@dataclass(frozen=True, slots=True)
class Recollection:
    """The tokens of some draws' requests; shorter rows are padded with the row's own first token."""

    tokens: Tensor
    """[draws, width] int64: the distinct tokens of the prompt, then the output."""
    written: Tensor
    """[draws, width] bool: whether an entry belongs to the output."""


class TokenMemory:
    """A table of tokens, one row for each running request; it grows when a request first needs a row."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        """Make an empty table. `capacity` is the limit of a request's tokens, prompt and output together."""
        self._capacity = capacity
        self._tokens = torch.zeros(0, capacity, dtype=torch.int64, device=device)
        self._read: dict[int, int] = {}
        """Number of distinct prompt tokens in each row."""

    def begin(self, draws: Sequence[Draw]) -> None:
        """Write the prompt and output so far of each fresh draw into its row, if the request needs them."""
        fresh = [draw for draw in Draws.of(draws).others if draw.fresh and draw.params.reads_output]
        if not fresh:
            return
        self._make_room(1 + max(draw.row for draw in fresh))
        known = []
        for draw in fresh:
            prompt = np.unique(np.asarray(draw.prompt, np.int64))
            self._read[draw.row] = len(prompt)
            known.append(torch.from_numpy(np.concatenate([prompt, np.asarray(draw.output, np.int64)])))
        for draw, tokens in zip(fresh, stage(known, self._tokens.device), strict=True):
            self._tokens[draw.row, : len(tokens)] = tokens

    def add(self, draws: Sequence[Draw], tokens: Tensor) -> None:
        """Append each drawn token of `tokens` [draws] int64 to its request's row; a failed draw appends token 0."""
        places = [(index, draw) for index, draw in enumerate(draws) if draw.params.reads_output]
        if places:
            columns = [[index for index, _ in places], [draw.row for _, draw in places]]
            columns.append([self._length(draw) for _, draw in places])
            sources, rows, ends = stage([torch.tensor(column) for column in columns], self._tokens.device)
            self._tokens[rows, ends] = tokens.index_select(0, sources).clamp(min=0)

    def recall(self, draws: Sequence[Draw]) -> Recollection:
        """The tokens of the requests of `draws`. Each request must have a row, with at least one token."""
        lengths = [self._length(draw) for draw in draws]
        columns = [[draw.row for draw in draws], lengths, [self._read[draw.row] for draw in draws]]
        rows, ends, reads = stage([torch.tensor(column) for column in columns], self._tokens.device)
        width = max(lengths)
        place = torch.arange(width, device=self._tokens.device)
        tokens = self._tokens[:, :width].index_select(0, rows)
        inside = place < ends[:, None]
        return Recollection(torch.where(inside, tokens, tokens[:, :1]), inside & (place >= reads[:, None]))

    def recent(self, draws: Sequence[Draw], count: int) -> Tensor:
        """The last `count` output tokens of the requests of `draws` [draws, count]; -1 before the first.

        Each request must have a row.
        """
        lengths = [self._length(draw) for draw in draws]
        columns = [[draw.row for draw in draws], lengths, [self._read[draw.row] for draw in draws]]
        rows, ends, reads = stage([torch.tensor(column) for column in columns], self._tokens.device)
        places = ends[:, None] + torch.arange(-count, 0, device=self._tokens.device)
        tokens = self._tokens[rows[:, None], places.clamp(min=0)]
        return tokens.masked_fill(places < reads[:, None], -1)

    def _length(self, draw: Draw) -> int:
        return self._read[draw.row] + draw.index

    def _make_room(self, rows: int) -> None:
        missing = rows - len(self._tokens)
        if missing > 0:
            self._tokens = torch.cat([self._tokens, self._tokens.new_zeros(missing, self._capacity)])
