"""The distribution of a draw, stage by stage: what the sampler's own steps make of the logits.

Nothing is computed twice in another way: the transforms are watched while they edit the logits, and the filters behind
them are the sampler's, turned on one after the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.backend import SamplingBatch
from kernels.reference_sampling import exponentials, sampled_weights, stream_keys, uniforms
from model.contract import Draw
from model.sampling.transforms import Transform
from model.seen import Distribution, Stage
from model.transfer import stage, to_host

FILTERS: dict[str, Callable[[Draw], bool]] = {
    "temperature": lambda draw: draw.params.temperature != 1,
    "top_k": lambda draw: draw.params.temperature > 0 and draw.params.top_k > 0,
    "top_p": lambda draw: draw.params.temperature > 0 and draw.params.top_p < 1,
    "min_p": lambda draw: draw.params.temperature > 0 and draw.params.min_p > 0 and draw.params.filter_order != "vllm",
}
"""The backend's stages, in the order in which it applies them, and the draws that ask for each."""

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

    def __init__(self, draws: Sequence[Draw], logits: Tensor) -> None:
        """`logits` [rows, vocab] float32 are the model's own; row i belongs to draws[i]. Some draw must ask."""
        asking = [row for row, draw in enumerate(draws) if draw.candidates is not None]
        self._asking = [(row, draws[row]) for row in asking]
        self._draws = [draws[row] for row in asking]
        (self._rows,) = stage([torch.tensor(asking)], logits.device)
        self._names: list[tuple[str, Callable[[Draw], bool]]] = []
        self._probabilities: list[Tensor] = []
        """[rows, vocab] float32 for each of the names."""
        self._note("raw", lambda draw: True, self._logits(logits).softmax(-1))

    def note(self, transform: Transform, logits: Tensor) -> None:
        """Keep what a transform has made of the logits, if any of the draws asks for it."""
        if any(map(transform.applies, self._draws)):
            self._note(transform.name, transform.applies, self._logits(logits).softmax(-1))

    def table(self, logits: Tensor, batch: SamplingBatch, tokens: Tensor) -> WaterfallTable:
        """The stages up to the drawn `tokens` [rows] int64, which come of `logits` by `batch`."""
        logits, tokens = self._logits(logits), tokens.index_select(0, self._rows)
        batch = batch.map(lambda column: column.index_select(0, self._rows))
        for count, (name, applies) in enumerate(FILTERS.items(), 1):
            if any(map(applies, self._draws)):
                weights = sampled_weights(logits, _first_filters(batch, count))
                self._note(name, applies, weights / weights.sum(-1, keepdim=True, dtype=torch.float64))
        most = min(max(draw.candidates or 0 for draw in self._draws), logits.shape[1])
        chosen = [of_stage.topk(most).indices for of_stage in (self._probabilities[-1], self._probabilities[0])]
        candidates = torch.cat([*chosen, tokens.clamp(min=0)[:, None]], 1)
        noise = exponentials(uniforms(stream_keys(batch), candidates.int()))
        head = torch.stack([candidates.double(), noise.double(), tokens[:, None].expand_as(candidates).double()], 1)
        head = torch.nn.functional.pad(head, (_FIGURES, 0))
        before = [self._probabilities[0], *self._probabilities]
        rows = [_row(now, then, candidates) for now, then in zip(self._probabilities, before, strict=False)]
        return WaterfallTable(self._asking, self._names, torch.cat([head, torch.stack(rows, 1)], 1))

    def _logits(self, logits: Tensor) -> Tensor:
        return logits.index_select(0, self._rows)

    def _note(self, name: str, applies: Callable[[Draw], bool], probabilities: Tensor) -> None:
        self._names.append((name, applies))
        self._probabilities.append(probabilities)


def _first_filters(batch: SamplingBatch, count: int) -> SamplingBatch:
    """The batch with the first `count` of `FILTERS` on, and the others off."""
    off = {"top_k": 0, "top_p": 1, "min_p": 0}
    names = [*FILTERS][count:]
    return replace(batch, **{name: torch.full_like(getattr(batch, name), off[name]) for name in names})


def _row(now: Tensor, before: Tensor, candidates: Tensor) -> Tensor:
    """Kept, mass, entropy and the candidates' probabilities [rows, 3 + candidates] of a stage [rows, vocab]."""
    kept = now > 0
    mass = torch.where(kept, before, 0.0).sum(-1, dtype=torch.float64)
    entropy = torch.special.entr(now).sum(-1, dtype=torch.float64)
    figures = torch.stack([kept.sum(-1).double(), mass, entropy], 1)
    return torch.cat([figures, now.gather(1, candidates).double()], 1)
