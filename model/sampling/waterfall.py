"""The distribution of a draw, stage by stage: what the sampler's own steps make of the logits.

Nothing is computed twice in another way: the transforms are watched while they edit the logits, and the filters behind
them are the sampler's, turned on one after the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from kernels.backend import Backend, SamplingBatch, Weighed
from kernels.reference_sampling import exponentials, stream_keys, uniforms
from model.contract import Draw
from model.inspection import Distribution, Stage
from model.sampling.orders import ASKED, BACKEND, TRANSFORMED
from model.sampling.transforms import Transform
from model.transfer import stage, to_host

_OFF = {"top_k": 0, "top_p": 1, "min_p": 0}
"""The values at which the backend's filters keep every token."""

_FIGURES = 3
"""Columns of a table before those of the candidates: kept, mass, entropy."""


@dataclass(frozen=True, slots=True)
class WaterfallTable:
    """The stages of the draws that ask for them, as one tensor."""

    draws: Sequence[tuple[int, Draw]]
    """The draws that ask, each with its row."""
    names: Sequence[tuple[str, Callable[[Draw], bool]]]
    """The stages that any draw asks for, and whether a draw does."""
    numbers: Tensor
    """[draws, 3 + stages, 3 + candidates] float64. The first rows have, for each candidate, its id, noise, and the
    drawn token; the next ones for each stage kept, mass, entropy, and the candidates' probabilities."""

    def to_host(self) -> "WaterfallTable":
        """The table in host memory, as `model.transfer.to_host` brings it."""
        return replace(self, numbers=to_host(self.numbers))

    def read(self) -> dict[int, Distribution]:
        """The distributions by the rows of the draws that ask. The table must be in host memory."""
        return {
            row: self._read(draw, rows) for (row, draw), rows in zip(self.draws, self.numbers.tolist(), strict=True)
        }

    def _read(self, draw: Draw, rows: Sequence[Sequence[float]]) -> Distribution:
        (ids, noise, drawn), stages = ([row[_FIGURES:] for row in rows[:3]], rows[3:])
        applied = [row for (_, applies), row in zip(self.names, stages, strict=True) if applies(draw)]
        named = [name for name, applies in self.names if applies(draw)]
        first, last = applied[0][_FIGURES:], applied[-1][_FIGURES:]
        most, asked = len(ids) // 2, draw.candidates or 0
        # The last stage may keep fewer tokens than were asked for.
        places = [place for place in range(min(most, asked)) if last[place] > 0]
        places += [*range(most, most + min(most, asked)), len(ids) - 1]
        places = [*{ids[place]: place for place in places}.values()]
        places.sort(key=lambda place: (-last[place], -first[place]))
        return Distribution(
            position=draw.position,
            stages=[Stage(name, int(row[0]), row[1], row[2]) for name, row in zip(named, applied, strict=True)],
            candidates=[int(ids[place]) for place in places],
            probabilities=[[row[_FIGURES + place] for row in applied] for place in places],
            noise=[noise[place] for place in places] if draw.params.temperature > 0 else None,
            drawn=int(drawn[0]),
        )


class Waterfall:
    """Watches the logits of the draws that ask for it on their way to the sampler."""

    def __init__(self, backend: Backend, draws: Sequence[Draw], logits: Tensor) -> None:
        """`logits` [rows, vocab] float32 are the model's own; row i belongs to draws[i]. Some draw must ask."""
        asking = [row for row, draw in enumerate(draws) if draw.candidates is not None]
        self._backend = backend
        self._asking = [(row, draws[row]) for row in asking]
        self._draws = [draws[row] for row in asking]
        (self._rows,) = stage([torch.tensor(asking)], logits.device)
        self._names: list[tuple[str, Callable[[Draw], bool]]] = []
        self._stages: list[Weighed] = []
        """The weights of each of the names, and what they come to."""
        self._plain = _every_token(self._rows)
        self._note("raw", lambda draw: True, self._logits(logits), self._plain)

    def note(self, transform: Transform, logits: Tensor) -> None:
        """Keep what a transform has made of the logits, if any of the draws asks for it."""
        if any(map(transform.applies, self._draws)):
            self._note(transform.name, transform.applies, self._logits(logits), self._plain)

    def table(self, logits: Tensor, batch: SamplingBatch, tokens: Tensor) -> WaterfallTable:
        """The stages up to the drawn `tokens` [rows] int64, which come of `logits` by `batch`."""
        logits, tokens = self._logits(logits), tokens.index_select(0, self._rows)
        batch = batch.map(lambda column: column.index_select(0, self._rows))
        for count, name in enumerate(BACKEND, 1):
            applies = partial(_left, name)
            if any(map(applies, self._draws)):
                self._note(name, applies, logits, _first_filters(batch, count))
        most = min(max(draw.candidates or 0 for draw in self._draws), logits.shape[1])
        drawn = tokens.clamp(min=0)
        chosen = [self._likeliest(of_stage, drawn, most) for of_stage in (self._stages[-1], self._stages[0])]
        candidates = torch.cat([*chosen, drawn[:, None]], 1)
        noise = exponentials(uniforms(stream_keys(batch), candidates.int()))
        head = torch.stack([candidates.double(), noise.double(), tokens[:, None].expand_as(candidates).double()], 1)
        head = torch.nn.functional.pad(head, (_FIGURES, 0))
        rows = torch.stack([_row(weighed, candidates) for weighed in self._stages], 1)
        return WaterfallTable(self._asking, self._names, torch.cat([head, rows], 1))

    def _logits(self, logits: Tensor) -> Tensor:
        return logits.index_select(0, self._rows)

    def _note(self, name: str, applies: Callable[[Draw], bool], logits: Tensor, batch: SamplingBatch) -> None:
        self._names.append((name, applies))
        self._stages.append(self._backend.weigh(logits, batch, self._stages[-1] if self._stages else None))

    def _likeliest(self, weighed: Weighed, tokens: Tensor, most: int) -> Tensor:
        """The `most` likeliest tokens [rows, most] int64 of a stage."""
        # Weights have the order of their own exponentials.
        return self._backend.log_probabilities(weighed.weights, tokens, most)[:, 2 + most :].long()


def _left(stage: str, draw: Draw) -> bool:
    """Whether a draw asks for a stage that is left to the backend."""
    return ASKED[stage](draw.params) and not TRANSFORMED[stage](draw.params)


def _first_filters(batch: SamplingBatch, count: int) -> SamplingBatch:
    """The batch with the first `count` of the backend's stages on, and the others off."""
    return replace(batch, **{name: torch.full_like(getattr(batch, name), _OFF[name]) for name in BACKEND[count:]})


def _every_token(rows: Tensor) -> SamplingBatch:
    """A batch for so many `rows` that keeps every token, at temperature 1."""
    one, zero = torch.ones_like(rows, dtype=torch.float32), torch.zeros_like(rows)
    return SamplingBatch(temperature=one, top_k=zero, top_p=one, min_p=zero.float(), seed=zero, counter=zero)


def _row(weighed: Weighed, candidates: Tensor) -> Tensor:
    """Kept, mass, entropy and the candidates' probabilities [rows, 3 + candidates] of a stage."""
    total, figures = weighed.figures.split([1, _FIGURES], 1)
    return torch.cat([figures, weighed.weights.gather(1, candidates) / total], 1)
