"""The tokens that requests have read and written, kept where the logits are, for draws that depend on them.

A request has a row for as long as it runs. What is drawn is added by the device that drew it: the host knows how many
tokens a row has, and need not know the newest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.contract import Draw
from model.transfer import stage


@dataclass(frozen=True, slots=True)
class Recollection:
    """The rows of some draws. A token beyond a row's end is the row's first one again."""

    tokens: Tensor
    """int64 [draws, width]: first the prompt's distinct tokens, then the output."""
    written: Tensor
    """bool [draws, width]: where the output stands."""


class TokenMemory:
    """A table with a row for each request that runs, made when the first request needs it."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        """`capacity` is how many tokens a request may have."""
        self._capacity = capacity
        self._tokens = torch.zeros(0, capacity, dtype=torch.int64, device=device)
        self._read: dict[int, int] = {}
        """How many distinct tokens the prompt of each row's request has."""

    def begin(self, draws: Sequence[Draw]) -> None:
        """Take in what the requests have read and written so far that draw for the first time since they run."""
        fresh = [draw for draw in draws if draw.fresh and draw.params.reads_output]
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
        """Append to each request's row the token that was drawn for it, int64 [draws]; a failed draw adds any token."""
        places = [(index, draw) for index, draw in enumerate(draws) if draw.params.reads_output]
        if places:
            columns = [[index for index, _ in places], [draw.row for _, draw in places]]
            columns.append([self._length(draw) for _, draw in places])
            sources, rows, ends = stage([torch.tensor(column) for column in columns], self._tokens.device)
            self._tokens[rows, ends] = tokens.index_select(0, sources).clamp(min=0)

    def recall(self, draws: Sequence[Draw]) -> Recollection:
        """What the requests of `draws` have read and written; each has a token at least."""
        lengths = [self._length(draw) for draw in draws]
        columns = [[draw.row for draw in draws], lengths, [self._read[draw.row] for draw in draws]]
        rows, ends, reads = stage([torch.tensor(column) for column in columns], self._tokens.device)
        width = max(lengths)
        place = torch.arange(width, device=self._tokens.device)
        tokens = self._tokens[:, :width].index_select(0, rows)
        inside = place < ends[:, None]
        return Recollection(torch.where(inside, tokens, tokens[:, :1]), inside & (place >= reads[:, None]))

    def _length(self, draw: Draw) -> int:
        return self._read[draw.row] + draw.index

    def _make_room(self, rows: int) -> None:
        missing = rows - len(self._tokens)
        if missing > 0:
            self._tokens = torch.cat([self._tokens, self._tokens.new_zeros(missing, self._capacity)])
