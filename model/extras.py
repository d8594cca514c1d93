"""Wishes of chunks beside drawn tokens: scores of known tokens, hidden rows, inspections of the decoder.

A plan without such wishes costs nothing here, and wishes do not change what is drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from kernels.backend import Backend, KVCache, SamplingBatch
from model.batch import Batch
from model.contract import Chunk, ChunkResult, Draw, StepPlan
from model.decoder import Passed, Probe
from model.drafter import AnyDecoder
from model.embedding_table import EmbeddingTable
from model.inspection import Embedded, InspectionRequest, PositionEncoding
from model.position_encoding import position_encoding
from model.probes import ChunkProbe, JoinedProbes
from model.sampling.choice import Choice, choose
from model.sampling.logprobs import ROWS_AT_ONCE, logprob_table, read_table, score
from model.sampling.memory import TokenMemory
from model.sampling.settings import settings_of
from model.spec import DecoderSpec
from model.transfer import stage, to_array, to_host
from model.weights import DecoderWeights

TRIALS_AT_ONCE = 8
"""Trial draws that are made at once, lest the stages of many take gigabytes."""


class Head(Protocol):
    """A decoder without its forward pass: what goes into the first layer, and what stands behind the last."""

    @property
    def spec(self) -> DecoderSpec: ...

    @property
    def weights(self) -> DecoderWeights: ...

    @property
    def backend(self) -> Backend: ...

    def logits(self, hidden: Tensor) -> Tensor: ...

    def final_norm(self, residual: Tensor) -> Tensor: ...


class ChunkExtras:
    """The wishes of one chunk, and what comes of them."""

    def __init__(self, chunk: Chunk, begin: int, block_size: int, backend: Backend) -> None:
        """`begin` is the row of the chunk's first token in the batch."""
        self._chunk = chunk
        self._begin = begin
        asked = chunk.inspect
        self.probe = ChunkProbe(chunk, asked, begin, block_size, backend) if asked and asked.has_result else None
        self._scores: Tensor | None = None
        self._lens: Tensor | None = None
        self._lens_logits: Tensor | None = None
        self._pooled: Tensor | None = None
        self._embedded: tuple[Tensor, Tensor, Tensor] | None = None
        self._vectors: Tensor | None = None
        self._encoding: Callable[[], PositionEncoding] | None = None
        self._trials: list[Choice] = []

    def look_up(self, tokens: Tensor, table: EmbeddingTable, head: Head) -> None:
        """Look up what goes into the forward pass of the batch's `tokens` [tokens] int64."""
        asked = self._chunk.inspect
        if asked is None:
            return
        places, positions = stage([self._places(asked), torch.tensor(asked.positions)], tokens.device)
        if asked.embedding is not None:
            mine = tokens.index_select(0, places + self._begin)
            cosines, ids = table.nearest(mine, asked.embedding)
            self._embedded = to_host(table.norms[mine]), to_host(cosines), to_host(ids)
            self._vectors = to_host(table.rows(mine)) if asked.vectors else None
        if asked.encoding:
            rows = head.weights.position_embedding
            learned = None if rows is None else to_host(rows.index_select(0, positions))
            self._encoding = partial(position_encoding, head.spec, asked.positions, learned)

    @property
    def has_lens(self) -> bool:
        """Whether a logit lens is wanted."""
        return self.probe is not None and self._chunk.inspect is not None and self._chunk.inspect.lens is not None

    def lens_rows(self) -> Tensor | None:
        """The residual streams of the logit lens, [stages * positions, hidden]; None if there is none."""
        return None if self.probe is None else self.probe.lens_rows()

    def give_lens(self, logits: Tensor) -> None:
        """Give the logits [stages * positions, vocab] of `lens_rows`, which `take` would otherwise compute."""
        self._lens_logits = logits

    def take(self, hidden: Tensor, drawn: Tensor, head: Head) -> None:
        """Compute what is wanted from the batch's hidden rows and the chunk's `drawn` tokens [draws]."""
        chunk = self._chunk
        if self.probe:
            self.probe.weigh()
        mine = hidden[self._begin : self._begin + len(chunk.tokens)]
        if chunk.pooled:
            self._pooled = to_host(mine[slice(*chunk.pooled)].float().sum(0))
        if chunk.scores or (chunk.inspect and chunk.inspect.lens is not None):
            following = self._following(drawn)
            if chunk.scores:
                scored = slice(chunk.scores.first, len(chunk.tokens) - (chunk.next is None))
                self._scores = to_host(
                    score(head.backend, head.logits, mine[scored], following[scored], chunk.scores.top)
                )
            if (rows := self.lens_rows()) is not None:
                self._lens = to_host(self._lens_table(rows, following, head))
        for first in range(0, len(chunk.trials), TRIALS_AT_ONCE):
            self._trials.append(self._try(mine, chunk.trials[first : first + TRIALS_AT_ONCE], head))

    def add(self, result: ChunkResult) -> ChunkResult:
        """The chunk's result with what was wanted. Waits for the device."""
        chunk = self._chunk
        scores = [] if self._scores is None or not chunk.scores else read_table(self._scores.tolist(), chunk.scores.top)
        lens = None
        if self._lens is not None and chunk.inspect:
            lens = [read_table(rows, chunk.inspect.lens or 0) for rows in self._lens.tolist()]
        pooled = None if self._pooled is None else to_array(self._pooled)
        inspection = None if self.probe is None else self.probe.result(lens)
        if inspection is not None and (self._embedded or self._encoding):
            encoding = None if self._encoding is None else self._encoding()
            inspection = replace(inspection, embedding=self._told_embedding(), encoding=encoding)
        trials = [shown for choice in self._trials for shown in choice.distributions().values()]
        return replace(
            result, scores=scores, pooled=pooled, inspection=inspection, distributions=[*trials, *result.distributions]
        )

    def _places(self, asked: InspectionRequest) -> Tensor:
        """The places [positions] int64 in the chunk of the positions that are looked at, in host memory."""
        return torch.tensor(asked.positions) - self._chunk.start

    def _told_embedding(self) -> Embedded | None:
        if self._embedded is None:
            return None
        norms, cosines, ids = self._embedded
        pairs = zip(ids.tolist(), cosines.tolist(), strict=True)
        vectors = None if self._vectors is None else to_array(self._vectors)
        near = [[*zip(*pair, strict=True)] for pair in pairs]
        return Embedded(norms=to_array(norms), nearest=near, vectors=vectors)

    def _following(self, drawn: Tensor) -> Tensor:
        """The token that follows each of the chunk's tokens [tokens] int64, known or drawn; 0 where it is neither."""
        chunk = self._chunk
        known = [*chunk.tokens[1:], 0 if chunk.next is None else chunk.next]
        (following,) = stage([torch.tensor(known)], drawn.device)
        # A failed draw is INVALID_TOKEN; its request ends, and nobody reads the scores.
        return torch.cat([following[: len(known) - len(drawn)], drawn]).clamp(min=0)

    def _try(self, mine: Tensor, trials: Sequence[Draw], head: Head) -> Choice:
        """Trial draws; they have a memory of their own, so that they leave no trace in anybody's."""
        (places,) = stage([torch.tensor([draw.position - self._chunk.start for draw in trials])], mine.device)
        memory = TokenMemory(1 + max(len(draw.prompt) for draw in trials), head.backend, mine.device)
        settings = settings_of(trials, mine.device)
        logits = head.logits(mine.index_select(0, places))
        return choose(head.backend, logits, trials, memory, settings, settings.batch(trials)).to_host()

    def _lens_table(self, rows: Tensor, following: Tensor, head: Head) -> Tensor:
        """The logit lens's table [stages, positions, columns] of the streams `rows` [stages * positions, hidden]."""
        asked = self._chunk.inspect
        assert asked is not None
        assert asked.lens is not None
        (places,) = stage([self._places(asked)], following.device)
        targets = following.index_select(0, places).repeat(len(rows) // len(places))
        if self._lens_logits is not None:
            table = logprob_table(head.backend, self._lens_logits, targets, asked.lens)
        else:
            table = score(head.backend, lambda some: head.logits(head.final_norm(some)), rows, targets, asked.lens)
        return table.view(-1, len(places), table.shape[1])


class Extras:
    """The wishes of a whole plan. Plain decoding has none."""

    def __init__(self, plan: StepPlan, batch: Batch, block_size: int, backend: Backend) -> None:
        self._plan = plan
        self._extras = {
            index: ChunkExtras(chunk, batch.begins[index], block_size, backend)
            for index, chunk in enumerate(plan.others)
            if chunk.scores or chunk.pooled or chunk.inspect or chunk.trials
        }

    @property
    def probe(self) -> Probe | None:
        """The probe for the forward pass; None where nobody looks inside."""
        probes = [extras.probe for extras in self._extras.values() if extras.probe is not None]
        needed = [probe for probe in probes if probe.needed]
        return JoinedProbes(needed) if needed else None

    def look_up(self, tokens: Tensor, table: EmbeddingTable, head: Head) -> None:
        """See `ChunkExtras.look_up`."""
        for extras in self._extras.values():
            extras.look_up(tokens, table, head)

    def run(
        self, tokens: Tensor, batch: Batch, cache: KVCache, decoder: AnyDecoder, sampling: SamplingBatch | None
    ) -> Passed:
        """The pass of a batch's `tokens` [tokens] int64, with the logits [draws, vocab] of its draws, if it has any.

        `sampling` is as in `FullPass.run`.
        """
        rows = batch.rows if len(batch.rows) else None
        lens = any(extras.has_lens for extras in self._extras.values())
        passed = decoder.run(tokens, batch.layout, cache, self.probe, None if lens else rows, sampling)
        if not lens or rows is None:
            return passed
        return replace(passed, logits=self._logits(passed.hidden.index_select(0, rows), decoder))

    def _logits(self, hidden: Tensor, head: Head) -> Tensor:
        """The logits [rows, vocab] of the rows of draws, `hidden` [rows, hidden].

        A few rows of logit lenses are computed with them, since most of the time goes to reading the weights.
        """
        lenses = [(extras, rows) for extras in self._extras.values() if (rows := extras.lens_rows()) is not None]
        if not lenses or sum(len(rows) for _, rows in lenses) > ROWS_AT_ONCE:
            return head.logits(hidden)
        counts = [len(rows) for _, rows in lenses]
        beside = head.final_norm(torch.cat([rows for _, rows in lenses]))
        parts: Sequence[Tensor] = head.logits(torch.cat([hidden, beside])).split([len(hidden), *counts])
        for (extras, _), part in zip(lenses, parts[1:], strict=True):
            extras.give_lens(part)
        return parts[0]

    def take(self, hidden: Tensor, drawn: Tensor, head: Head) -> None:
        """See `ChunkExtras.take`; `drawn` are the tokens of all draws of the plan."""
        if self._extras:
            counts = [len(chunk.draws) for chunk in self._plan.others]
            ends = [*accumulate(counts, initial=len(self._plan.decoding))]
            for index, extras in self._extras.items():
                extras.take(hidden, drawn[ends[index] : ends[index + 1]], head)

    def add(self, results: list[ChunkResult]) -> list[ChunkResult]:
        """See `ChunkExtras.add`; one result for each of `StepPlan.others`."""
        for index, extras in self._extras.items():
            results[index] = extras.add(results[index])
        return results
