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

from model.contract import Distribution, Inside
from service.api.answers import observed, open_generations
from service.api.arrays import to_numpy
from service.api.bodies import EngineRoute
from service.api.context import Context, Served
from service.api.envelope import envelope_of
from service.api.errors import REFUSALS
from service.api.looks import Looks
from service.api.observe import CLIENT_CLOSED_REQUEST
from service.api.prompts import off_loop
from service.api.requests import inspect_job
from service.api.schemas.answers import (
    InspectedAttention,
    InspectedDistribution,
    InspectedResidual,
    InspectedToken,
    Inspection,
    LensEntry,
    Numbers,
)
from service.api.schemas.requests import InspectBody
from service.api.sse import ClientLeft, while_connected
from service.generation import GenerationRequest
from service.observability.record import RequestRecord
from service.text.interface import Tokenizer

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
        seen = await while_connected(request.receive, _look(context, job, envelope.record))
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    view = View(body, context, job, seen)
    text = await off_loop(context, view.numbers * CHARACTERS_A_NUMBER, lambda: view.inspection().model_dump_json())
    return Response(text, media_type="application/json")


class Seen(NamedTuple):
    """The engine's news of a request."""

    tokens: list[int]
    """The generated ones."""
    insides: Sequence[Inside]
    distributions: Sequence[Distribution]


async def _look(context: Context, job: GenerationRequest, record: RequestRecord) -> Seen:
    with open_generations(context, [job], record) as generations:
        async with aclosing(observed(record, generations)) as pieces:
            drawn = [piece async for _, piece in pieces if piece.token is not None]
        (generation,) = generations
    return Seen(
        tokens=[piece.token for piece in drawn if piece.token is not None],
        insides=[*generation.insides, *(piece.inside for piece in drawn if piece.inside is not None)],
        distributions=[*generation.distributions, *(shown for piece in drawn for shown in piece.distributions)],
    )


class View:
    """The answer to one request, made of looks at consecutive positions."""

    def __init__(self, body: InspectBody, context: Context, job: GenerationRequest, seen: Seen) -> None:
        self._body = body
        self._tokenizer: Tokenizer = context.tokenizer
        self._model = context.model_name
        self._looks = Looks(body, context.tokenizer, context.client.limits)
        self._prompt, self._generated = job.prompt, seen.tokens
        self._insides, self._shown = seen.insides, seen.distributions
        assert job.wanted.trace is not None
        self._trace = job.wanted.trace
        drawn_from = range(len(self._prompt) - 1, len(self._prompt) - 1 + len(self._generated))
        self._positions = sorted({*self._trace.positions, *drawn_from})

    @property
    def numbers(self) -> int:
        """About how many numbers the answer has."""
        arrays = [array for inside in self._insides for array in (inside.attention, inside.stream) if array]
        candidates = sum(len(shown.candidates) * len(shown.stages) for shown in self._shown)
        lens = 40 * len(self._positions) * (self._body.lens or 0)
        return sum(len(array.data) // 4 for array in arrays) + lens + 5 * candidates

    def inspection(self) -> Inspection:
        """The whole answer."""
        tokens = [self._token(id, generated=False) for id in self._prompt]
        tokens += [self._token(id, generated=True) for id in self._generated]
        answer = Inspection(object="inspection", model=self._model, tokens=tokens, positions=self._positions)
        if self._body.attention and self._insides:
            answer.attention = self._attention()
        if self._body.residual and self._insides:
            answer.residual = InspectedResidual(stream=self._joined("stream"), added=self._joined("added"))
        if self._body.lens is not None:
            answer.lens = self._lens()
        if self._body.distribution is not None:
            answer.distributions = self._distributions()
        return answer

    def _token(self, id: int, *, generated: bool) -> InspectedToken:
        return InspectedToken(
            id=id, text=self._looks.text(id), special=self._tokenizer.is_special(id), generated=generated
        )

    def _attention(self) -> InspectedAttention:
        keys = self._positions[-1] + 1
        parts = [to_numpy(inside.attention) for inside in self._insides if inside.attention]
        maps = np.concatenate([np.pad(part, ((0, 0), (0, 0), (0, keys - part.shape[2]))) for part in parts], axis=1)
        return self._looks.attention(maps)

    def _joined(self, name: str) -> Numbers:
        return self._looks.numbers(
            np.concatenate([to_numpy(getattr(inside, name)) for inside in self._insides], axis=1)
        )

    def _distributions(self) -> list[InspectedDistribution]:
        """The distributions of the trials, then of the generated tokens."""
        named = range(len(self._body.settings)) if self._body.settings else [None] * len(self._trace.settings)
        settings = [*named] * len(self._trace.positions) + [None] * len(self._generated)
        return [self._looks.distribution(shown, setting) for shown, setting in zip(self._shown, settings, strict=True)]

    def _lens(self) -> list[list[LensEntry]]:
        """[stages][positions]."""
        parts = [inside.lens for inside in self._insides if inside.lens is not None]
        stages = [[entry for part in parts for entry in part[stage]] for stage in range(len(parts[0]) if parts else 0)]
        last = len(self._prompt) + len(self._generated) - 1
        return [
            [
                self._looks.lens_entry(entry, followed=position < last)
                for position, entry in zip(self._positions, entries, strict=True)
            ]
            for entries in stages
        ]
