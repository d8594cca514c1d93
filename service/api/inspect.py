"""POST /v1/inspect: the inside of the model while it reads a text and goes on with it.

The engine that serves everybody else does the looking, in the same steps.
"""

from collections.abc import Sequence
from contextlib import aclosing
from typing import NamedTuple
from uuid import uuid4

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from model.inspection import Distribution, InspectionResult
from service.api.answers import observed, open_generations
from service.api.arrays import to_json, to_numpy
from service.api.attention import heaviest, joined, rollout
from service.api.bodies import EngineRoute
from service.api.context import Context, JobContext, Served
from service.api.envelope import envelope_of
from service.api.errors import REFUSALS
from service.api.inspection_writer import InspectionWriter
from service.api.observe import CLIENT_CLOSED_REQUEST
from service.api.prompts import off_loop
from service.api.requests import inspect_job
from service.api.schemas.inspect import InspectBody
from service.api.schemas.inspection import (
    InspectedAttention,
    InspectedDistribution,
    InspectedResidual,
    InspectedToken,
    Inspection,
    LensEntry,
    Numbers,
    Respelling,
    SpeltToken,
)
from service.api.sse import ClientLeft, while_connected
from service.generation import Generation, GenerationRequest, Piece
from service.observability.record import RequestRecord
from service.text.interface import Tokenizer
from service.text.respelling import Spelling, respellings
from service.text.spans import spans_of

CHARACTERS_A_NUMBER = 10
"""About the size of a number in an answer."""

router = APIRouter(tags=["inside"], route_class=EngineRoute)


@router.post("/v1/inspect", response_model=Inspection, responses=REFUSALS, summary="Look inside the model")
async def inspect(body: InspectBody, request: Request, context: Served) -> Response:
    """Attention weights, norms of the residual stream and a logit lens, at positions of the prompt and behind it."""
    envelope = envelope_of(request, context.settings)
    job = await inspect_job(body, context, envelope)
    envelope.record.id = f"insp-{uuid4().hex}"
    try:
        parts = await while_connected(request.receive, _inspected(context, job, envelope.record))
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    builder = InspectionBuilder(body, context, job, parts)
    text = await off_loop(context, builder.numbers * CHARACTERS_A_NUMBER, lambda: to_json(builder.inspection()))
    return Response(text, media_type="application/json")


class InspectionParts(NamedTuple):
    """The engine's news of a request."""

    tokens: list[int]
    """The generated ones."""
    inspections: Sequence[InspectionResult]
    distributions: Sequence[Distribution]

    @classmethod
    def of(cls, generation: Generation, pieces: Sequence[Piece]) -> "InspectionParts":
        """The news of an ended generation whose pieces these are."""
        drawn = [piece for piece in pieces if piece.token is not None]
        return cls(
            tokens=[piece.token for piece in drawn if piece.token is not None],
            inspections=[
                *generation.inspections,
                *(piece.inspection for piece in drawn if piece.inspection is not None),
            ],
            distributions=[*generation.distributions, *(shown for piece in drawn for shown in piece.distributions)],
        )


async def _inspected(context: Context, job: GenerationRequest, record: RequestRecord) -> InspectionParts:
    with open_generations(context, [job], record) as generations:
        async with aclosing(observed(record, generations)) as arriving:
            pieces = [piece async for _, piece in arriving]
        return InspectionParts.of(generations[0], pieces)


class InspectionBuilder:
    """Makes the answer to one request of the results for consecutive positions."""

    def __init__(self, body: InspectBody, context: JobContext, job: GenerationRequest, parts: InspectionParts) -> None:
        self._body = body
        self._tokenizer: Tokenizer = context.tokenizer
        self._model = context.model_name
        self._writer = InspectionWriter(body, context.tokenizer, context.client.limits)
        self._prompt, self._generated = job.sent.prompt, parts.tokens
        self._inspections, self._shown = parts.inspections, parts.distributions
        assert job.sent.wanted.inspect is not None
        self._asked = job.sent.wanted.inspect
        drawn_from = range(len(self._prompt) - 1, len(self._prompt) - 1 + len(self._generated))
        self._positions = sorted({*self._asked.positions, *drawn_from})

    @property
    def numbers(self) -> int:
        """About how many numbers the answer has."""
        arrays = [array for part in self._inspections for array in (part.attention, part.stream) if array]
        candidates = sum(len(shown.candidates) * len(shown.stages) for shown in self._shown)
        arrays += [part.encoding.learned for part in self._inspections if part.encoding and part.encoding.learned]
        arrays += [part.embedding.vectors for part in self._inspections if part.embedding and part.embedding.vectors]
        lens = 40 * len(self._positions) * (self._body.lens or 0)
        spelt = 40 * len(self._body.prompt) if self._body.spellings and self._body.prompt else 0
        return sum(len(array.data) // 4 for array in arrays) + lens + 5 * candidates + spelt

    def inspection(self) -> Inspection:
        """The whole answer."""
        ids = [*self._prompt, *self._generated]
        tokens = [
            InspectedToken(**self._writer.token(id), generated=p >= len(self._prompt)) for p, id in enumerate(ids)
        ]
        answer = Inspection(object="inspection", model=self._model, tokens=tokens, positions=self._positions)
        if self._body.details:
            answer.text = self._add_details(ids, tokens)
        if self._body.return_offsets:
            answer.offsets = spans_of(self._tokenizer, ids)
        if self._body.spellings:
            answer.spellings = self._spellings()
        if self._body.attention and self._inspections:
            answer.attention = self._attention()
        if self._body.residual and self._inspections:
            answer.residual = InspectedResidual(stream=self._joined("stream"), added=self._joined("added"))
        embedded = [part.embedding for part in self._inspections if part.embedding is not None]
        if embedded:
            answer.embedding = self._writer.embedding(embedded)
        encodings = [part.encoding for part in self._inspections if part.encoding is not None]
        if encodings:
            answer.position_encoding = self._writer.encoding(encodings)
        if self._body.lens is not None:
            answer.lens = self._lens()
        if self._body.distribution is not None:
            answer.distributions = self._distributions()
        return answer

    def _add_details(self, ids: Sequence[int], tokens: Sequence[SpeltToken]) -> str:
        """Add the tokens' bytes and their places in the text that they spell, which is returned."""
        for token, span in zip(tokens, spans_of(self._tokenizer, ids), strict=True):
            token.bytes, token.offsets = [*self._tokenizer.token_bytes(token.id)], span
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _spellings(self) -> list[Respelling]:
        assert self._body.prompt is not None
        return [self._respelling(name, text) for name, text in respellings(self._body.prompt).items()]

    def _respelling(self, name: Spelling, text: str) -> Respelling:
        frame = self._body.add_special_tokens is not False
        ids = self._tokenizer.encode(text, add_special_tokens=frame, parse_special=True)
        tokens = [SpeltToken(**self._writer.token(id)) for id in ids]
        if self._body.details:
            self._add_details(ids, tokens)
        return Respelling(name=name, text=text, tokens=tokens)

    def _attention(self) -> InspectedAttention:
        attention = joined(self._inspections)
        if self._body.reduction == "rollout":
            attention = attention._replace(weights=rollout(attention.weights))
            if self._body.top_keys is not None:
                attention = heaviest(attention.weights, self._body.top_keys)
        return self._writer.attention(attention)

    def _joined(self, name: str) -> Numbers:
        return self._writer.numbers(
            np.concatenate([to_numpy(getattr(part, name)) for part in self._inspections], axis=1)
        )

    def _distributions(self) -> list[InspectedDistribution]:
        """The distributions of the trials, then of the generated tokens."""
        named = range(len(self._body.settings)) if self._body.settings else [None] * len(self._asked.settings)
        settings = [*named] * len(self._asked.positions) + [None] * len(self._generated)
        return [self._writer.distribution(shown, setting) for shown, setting in zip(self._shown, settings, strict=True)]

    def _lens(self) -> list[list[LensEntry]]:
        """[stages][positions]."""
        parts = [part.lens for part in self._inspections if part.lens is not None]
        stages = [[entry for part in parts for entry in part[stage]] for stage in range(len(parts[0]) if parts else 0)]
        last = len(self._prompt) + len(self._generated) - 1
        return [
            [
                self._writer.lens_entry(entry, followed=position < last)
                for position, entry in zip(self._positions, entries, strict=True)
            ]
            for entries in stages
        ]
