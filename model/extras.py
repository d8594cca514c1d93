"""Wishes of chunks beside drawn tokens: scores of known tokens, hidden rows, looks inside the decoder.

A plan without such wishes costs nothing here, and wishes do not change what is drawn.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from kernels.backend import Backend
from model.batch import Batch
from model.contract import Chunk, ChunkResult, StepPlan
from model.decoder import Logits, Probe
from model.inside import Probes, Recorder, to_array
from model.sampling.logprobs import read_table, score
from model.transfer import stage, to_host


class ChunkExtras:
    """The wishes of one chunk, and what comes of them."""

    def __init__(self, chunk: Chunk, begin: int, block_size: int, backend: Backend) -> None:
        """`begin` is the row of the chunk's first token in the batch."""
        self._chunk = chunk
        self._begin = begin
        trace = chunk.trace
        self.recorder = Recorder(chunk, trace, begin, block_size, backend) if trace else None
        self._scores: Tensor | None = None
        self._lens: Tensor | None = None
        self._pooled: Tensor | None = None

    def take(self, hidden: Tensor, drawn: Tensor, logits: Logits, lens: Logits) -> None:
        """Compute what is wanted from the batch's hidden rows and the chunk's `drawn` tokens [draws], without waiting.

        `logits` makes logits of hidden rows, `lens` of the residual stream.
        """
        chunk = self._chunk
        mine = hidden[self._begin : self._begin + len(chunk.tokens)]
        if chunk.pooled:
            self._pooled = to_host(mine[slice(*chunk.pooled)].float().sum(0))
        if chunk.scores or (chunk.trace and chunk.trace.lens is not None):
            following = self._following(drawn)
            if chunk.scores:
                scored = slice(chunk.scores.first, len(chunk.tokens) - (chunk.next is None))
                self._scores = to_host(score(logits, mine[scored], following[scored], chunk.scores.top))
            if self.recorder and chunk.trace and chunk.trace.lens is not None:
                self._lens = to_host(self._look(self.recorder.streams[::2], following, lens, chunk.trace.lens))

    def add(self, result: ChunkResult) -> ChunkResult:
        """The chunk's result with what was wanted. Waits for the device."""
        chunk = self._chunk
        scores = [] if self._scores is None or not chunk.scores else read_table(self._scores.tolist(), chunk.scores.top)
        lens = None
        if self._lens is not None and chunk.trace:
            lens = [read_table(rows, chunk.trace.lens or 0) for rows in self._lens.tolist()]
        pooled = None if self._pooled is None else to_array(self._pooled)
        inside = None if self.recorder is None else self.recorder.inside(lens)
        return replace(result, scores=scores, pooled=pooled, inside=inside)

    def _following(self, drawn: Tensor) -> Tensor:
        """The token that follows each of the chunk's tokens [tokens] int64, known or drawn; 0 where it is neither."""
        chunk = self._chunk
        known = [*chunk.tokens[1:], 0 if chunk.next is None else chunk.next]
        (following,) = stage([torch.tensor(known)], drawn.device)
        # A failed draw is INVALID_TOKEN; its request ends, and nobody reads the scores.
        return torch.cat([following[: len(known) - len(drawn)], drawn]).clamp(min=0)

    def _look(self, streams: Sequence[Tensor], following: Tensor, lens: Logits, top: int) -> Tensor:
        """The logit lens's table [stages, positions, columns]; `streams` has [positions, hidden] for each stage."""
        assert self._chunk.trace is not None
        (places,) = stage([torch.tensor(self._chunk.trace.positions) - self._chunk.start], following.device)
        targets = following.index_select(0, places)
        table = score(lens, torch.cat([*streams]), targets.repeat(len(streams)), top)
        return table.view(len(streams), len(targets), -1)


class Extras:
    """The wishes of a whole plan."""

    def __init__(self, plan: StepPlan, batch: Batch, block_size: int, backend: Backend) -> None:
        self._plan = plan
        self._extras = {
            index: ChunkExtras(chunk, batch.begins[index], block_size, backend)
            for index, chunk in enumerate(plan.chunks)
            if chunk.scores or chunk.pooled or chunk.trace
        }

    @property
    def probe(self) -> Probe | None:
        """The probe for the forward pass; None where nobody looks inside."""
        recorders = [extras.recorder for extras in self._extras.values() if extras.recorder]
        return Probes(recorders) if recorders else None

    def take(self, hidden: Tensor, drawn: Tensor, logits: Logits, lens: Logits) -> None:
        """See `ChunkExtras.take`; `drawn` are the tokens of all draws of the plan."""
        if self._extras:
            ends = [*accumulate(len(chunk.draws) for chunk in self._plan.chunks)]
            for index, extras in self._extras.items():
                mine = drawn[ends[index] - len(self._plan.chunks[index].draws) : ends[index]]
                extras.take(hidden, mine, logits, lens)

    def add(self, results: list[ChunkResult]) -> list[ChunkResult]:
        """See `ChunkExtras.add`; one result for each chunk of the plan."""
        for index, extras in self._extras.items():
            results[index] = extras.add(results[index])
        return results
