"""The answering of a job, streamed or whole, alike for every route. A route only defines the layout of its answers.

Owns the lifetime of a request's generations: they end with the answer, however it ends.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager

import msgspec
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service.api.context import Context, JobContext
from service.api.errors import ApiError
from service.api.inspection_writer import InspectionWriter
from service.api.observe import CLIENT_CLOSED_REQUEST
from service.api.requests import Job
from service.api.schemas.answers import PromptTokensDetails, Usage
from service.api.schemas.inspection import TokenInspection
from service.api.sse import DONE, ClientLeft, EventStream, event, while_connected
from service.generation import Generation, GenerationRequest, Piece, interleave
from service.observability.record import RequestRecord, record_of
from service.observability.timeline import Timeline

MOST_HELD = 2**16
"""Bytes of events from which on they are sent, whatever follows."""


class Layout(ABC):
    """One answer in an API's form, whole or as the events of a stream; it keeps what it needs from piece to piece."""

    prefix: str
    """Prefix of the answer's id."""

    def __init__(self, job: Job, context: JobContext) -> None:
        self.job = job
        self.tokenizer = context.tokenizer
        self.id = f"{self.prefix}{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = context.model_name
        self.inspection_writer = (
            InspectionWriter(job.inspect, context.tokenizer, context.client.limits) if job.inspect is not None else None
        )

    @abstractmethod
    def begin(self, usage: Callable[[], Usage]) -> Iterator[bytes]:
        """Events before the first piece; `usage`, here and below, has the counts so far."""

    @abstractmethod
    def add(self, index: int, piece: Piece, usage: Callable[[], Usage]) -> Iterator[bytes]:
        """Events for the next piece of choice `index`."""

    @abstractmethod
    def end(self, usage: Callable[[], Usage]) -> Iterator[bytes]:
        """The last events of a stream."""

    @abstractmethod
    def failure(self, error: ApiError) -> bytes:
        """The event that ends a stream which breaks off."""

    @abstractmethod
    def whole(self, pieces: Sequence[Sequence[Piece]], usage: Usage) -> BaseModel:
        """The whole answer, from the pieces of each choice."""


_MARK = uuid.uuid4().hex
"""A text that no client knows, so that it occurs once in a chunk of it."""


class Format(Layout):
    """An answer in the form of OpenAI's completions: a stream's events are chunks of the same shape."""

    def __init__(self, job: Job, context: JobContext) -> None:
        super().__init__(job, context)
        self._around: dict[int, tuple[bytes, bytes]] = {}
        """The bytes before and behind the text in each choice's events that have only a text."""

    def counts(self, usage: Usage | None) -> dict[str, Usage | None]:
        """The usage field of a chunk: null in chunks without counts, and absent if nobody asked for counts."""
        return {"usage": usage} if self.job.include_usage else {}

    @abstractmethod
    def opening(self, usage: Usage | None) -> Iterator[BaseModel]:
        """Chunks before the first piece; `usage` is as in `chunk`."""

    @abstractmethod
    def chunk(self, index: int, piece: Piece, usage: Usage | None) -> BaseModel | str | None:
        """The chunk for the next piece of choice `index`; `usage`, if given, has the counts so far.

        Just its text, if nothing but that changes from chunk to chunk; None if there is nothing to tell.
        """

    @abstractmethod
    def text_chunk(self, index: int, text: str) -> BaseModel:
        """The chunk that tells nothing but the next text of choice `index`."""

    def tells(self, piece: Piece) -> bool:
        """Whether a piece has something to tell beside its text."""
        if piece.finish_reason is not None or self.inspection_writer is not None:
            return True
        return self.job.logprobs or self.job.return_token_ids

    def tells_text_alone(self, piece: Piece) -> bool:
        """Whether the chunk of a piece, in whichever place of the stream, has nothing but its text to tell."""
        return not (self.tells(piece) or self.job.continuous_usage or self.job.prompt_logprobs is not None)

    def inspections(self, pieces: Sequence[Piece]) -> list[TokenInspection]:
        """The inspections of the places where the tokens of some pieces were drawn; none if nobody asked."""
        writer = self.inspection_writer
        return [] if writer is None else [found for piece in pieces if (found := writer.of_token(piece)) is not None]

    @abstractmethod
    def closing(self, usage: Usage) -> BaseModel:
        """The last chunk of a stream, with the final counts."""

    def begin(self, usage: Callable[[], Usage]) -> Iterator[bytes]:
        for chunk in self.opening(self._so_far(usage)):
            yield event(json_of(chunk))

    def add(self, index: int, piece: Piece, usage: Callable[[], Usage]) -> Iterator[bytes]:
        chunk = self.chunk(index, piece, self._so_far(usage))
        if isinstance(chunk, str):
            yield self._text_event(index, chunk)
        elif chunk is not None:
            yield event(json_of(chunk))

    def _text_event(self, index: int, text: str) -> bytes:
        """The event of `text_chunk`. Most of a stream is such events, and the bytes they share are made once."""
        around = self._around.get(index)
        if around is None:
            before, behind = event(json_of(self.text_chunk(index, _MARK))).split(f'"{_MARK}"'.encode())
            around = self._around[index] = before, behind
        return around[0] + msgspec.json.encode(text) + around[1]

    def end(self, usage: Callable[[], Usage]) -> Iterator[bytes]:
        if self.job.include_usage:
            yield event(json_of(self.closing(usage())))
        yield DONE

    def failure(self, error: ApiError) -> bytes:
        return event(error.body.model_dump_json())

    def _so_far(self, usage: Callable[[], Usage]) -> Usage | None:
        return usage() if self.job.continuous_usage else None


async def answer(request: Request, context: Context, job: Job, layout: Layout) -> Response:
    """The response to a job. Raises ApiError, EngineDead or GenerationError before anything is sent."""
    record = record_of(request.scope)
    record.id, record.stream, record.n = layout.id, job.stream, job.tries
    if job.stream:
        return EventStream(_events(context, job, layout, record), layout.failure)
    try:
        complete = await while_connected(request.receive, _complete(context, job, layout, record))
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(json_of(complete), media_type="application/json")


async def _complete(context: Context, job: Job, layout: Layout, record: RequestRecord) -> BaseModel:
    pieces: list[list[Piece]] = [[] for _ in job.generations]
    with open_generations(context, job.generations, record) as generations:
        async with aclosing(observed(record, generations)) as arriving:
            async for index, piece in arriving:
                pieces[index].append(piece)
        return layout.whole(chosen(job, generations, pieces), usage_of(job, generations))


async def _events(context: Context, job: Job, layout: Layout, record: RequestRecord) -> AsyncGenerator[bytes, None]:
    with open_generations(context, job.generations, record) as generations:

        def usage() -> Usage:
            return usage_of(job, generations)

        opened, held = False, b""
        try:
            async with aclosing(observed(record, generations)) as arriving:
                async for index, piece in arriving:
                    # The beginning waits for the first piece: until the engine begins, a refusal can still have its
                    # own status.
                    held += b"" if opened else b"".join(layout.begin(usage))
                    opened = True
                    held += b"".join(layout.add(index, piece, usage))
                    # A process that is behind the engine catches up by sending what there is at once.
                    if held and (not piece.followed or len(held) > MOST_HELD):
                        yield held
                        held = b""
        except Exception:
            if held:
                yield held
            raise
        yield held + b"".join(layout.end(usage))


def chosen(job: Job, generations: Sequence[Generation], pieces: Sequence[Sequence[Piece]]) -> list[Sequence[Piece]]:
    """The pieces of each choice, from those of each generation: of a prompt's all, or the best, the best first.

    A beam search is one generation with several choices.
    """
    choices: list[Sequence[Piece]] = []
    for start in range(0, len(generations), job.tries):
        tries = [*range(start, start + job.tries)]
        if job.n < job.tries:
            tries = sorted(tries, key=lambda index: generations[index].mean_logprob, reverse=True)[: job.n]
        for index in tries:
            choices += [pieces[index], *generations[index].alternatives]
    return choices


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


def usage_of(job: Job, generations: Sequence[Generation]) -> Usage:
    """The token counts of a job, so far or when all of its generations have ended."""
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


def json_of(model: BaseModel) -> str:
    """The model as JSON. Fields that were not set are left out, but those set to null stay: clients tell them apart."""
    return model.model_dump_json(exclude_unset=True)
