"""The answering of a job, streamed or whole, alike for every route. A route only defines the format of its chunks.

Owns the lifetime of a request's generations: they end with the answer, however it ends.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service.api.context import Context
from service.api.observe import CLIENT_CLOSED_REQUEST
from service.api.requests import Job
from service.api.schemas.answers import PromptTokensDetails, Usage
from service.api.sse import DONE, ClientLeft, EventStream, event, while_connected
from service.generation import Generation, GenerationRequest, Piece, interleave
from service.observability.record import RequestRecord, record_of
from service.observability.timeline import Timeline


class Format(ABC):
    """One answer in a route's format; it keeps what it needs from piece to piece."""

    prefix: str
    """Prefix of the answer's id."""

    def __init__(self, job: Job, context: Context) -> None:
        self.job = job
        self.tokenizer = context.tokenizer
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = context.model_name

    def counts(self, usage: Usage | None) -> dict[str, Usage | None]:
        """The usage field of a chunk: null in chunks without counts, and absent if nobody asked for counts."""
        return {"usage": usage} if self.job.include_usage else {}

    @abstractmethod
    def opening(self, usage: Usage | None) -> Iterator[BaseModel]:
        """Chunks before the first piece; `usage` is as in `chunk`."""

    @abstractmethod
    def chunk(self, index: int, piece: Piece, usage: Usage | None) -> BaseModel | None:
        """The chunk for the next piece of choice `index`; `usage`, if given, has the counts so far.

        None if there is nothing to tell.
        """

    def tells(self, piece: Piece) -> bool:
        """Whether a piece has something to tell beside its text."""
        return piece.finish_reason is not None or self.job.logprobs or self.job.return_token_ids

    @abstractmethod
    def closing(self, usage: Usage) -> BaseModel:
        """The last chunk of a stream, with the final counts."""

    @abstractmethod
    def whole(self, pieces: Sequence[Sequence[Piece]], usage: Usage) -> BaseModel:
        """The whole answer, from the pieces of each choice."""


async def answer(request: Request, context: Context, job: Job, layout: Format) -> Response:
    """The response to a job. Raises ApiError, EngineDead or GenerationError before anything is sent."""
    record = record_of(request.scope)
    record.id, record.stream, record.n = layout.id, job.stream, job.tries
    if job.stream:
        return EventStream(_events(context, job, layout, record))
    try:
        complete = await while_connected(request.receive, _complete(context, job, layout, record))
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(_json(complete), media_type="application/json")


async def _complete(context: Context, job: Job, layout: Format, record: RequestRecord) -> BaseModel:
    pieces: list[list[Piece]] = [[] for _ in job.generations]
    with open_generations(context, job.generations, record) as generations:
        async with aclosing(observed(record, generations)) as arriving:
            async for index, piece in arriving:
                pieces[index].append(piece)
        chosen = [pieces[index] for index in _best(job, generations)]
        return layout.whole(chosen, _usage(job, generations))


async def _events(context: Context, job: Job, layout: Format, record: RequestRecord) -> AsyncGenerator[bytes, None]:
    with open_generations(context, job.generations, record) as generations:

        def usage() -> Usage | None:
            return _usage(job, generations) if job.continuous_usage else None

        opened = False
        async with aclosing(observed(record, generations)) as arriving:
            async for index, piece in arriving:
                # The opening waits for the first piece: until the engine begins, a refusal can still have its own
                # status.
                for beginning in () if opened else layout.opening(usage()):
                    yield event(_json(beginning))
                opened = True
                if (chunk := layout.chunk(index, piece, usage())) is not None:
                    yield event(_json(chunk))
        if job.include_usage:
            yield event(_json(layout.closing(_usage(job, generations))))
        yield DONE


def _best(job: Job, generations: Sequence[Generation]) -> Iterator[int]:
    """The generations that become choices: of each prompt all, or the best of them, the best first."""
    for start in range(0, len(generations), job.tries):
        tries = range(start, start + job.tries)
        if job.n < job.tries:
            ranked = sorted(tries, key=lambda index: generations[index].mean_logprob, reverse=True)
            yield from ranked[: job.n]
        else:
            yield from tries


@contextmanager
def open_generations(
    context: Context, requests: Sequence[GenerationRequest], record: RequestRecord
) -> Iterator[list[Generation]]:
    """Generations admitted and handed to the engine; they end with the `with`. Raises ApiError and EngineDead."""
    generations = []
    with context.admission.admit(len(requests)) as free, ExitStack() as stack:
        for request in requests:
            generation = stack.enter_context(Generation(context.client, context.tokenizer, request, ended=free))
            timeline = Timeline(generation, context.metrics, began=record.began, clock=record.clock)
            record.timelines.append(stack.enter_context(timeline))
            generations.append(generation)
        yield generations


async def observed(record: RequestRecord, generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of all generations as they come, each noted in its timeline."""
    async with aclosing(interleave(generations)) as pieces:
        async for index, piece in pieces:
            if piece.token is None:
                record.timelines[index].end(piece.finish_reason or "length")
            else:
                record.timelines[index].token(piece.finish_reason)
            yield index, piece


def _usage(job: Job, generations: Sequence[Generation]) -> Usage:
    prompt_tokens = sum(map(len, job.prompts))
    completion_tokens = sum(generation.completion_tokens for generation in generations)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=sum(generation.cached_tokens for generation in generations[:: job.tries])
        ),
    )


def _json(model: BaseModel) -> str:
    """The model as JSON. Fields that were not set are left out, but those set to null stay: clients tell them apart."""
    return model.model_dump_json(exclude_unset=True)
