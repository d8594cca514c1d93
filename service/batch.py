"""Batches: the requests of a file, answered by an engine of one's own through the same door as over HTTP.

The files are OpenAI's. A batch that was stopped goes on where it was when it is started again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from service.api.answers import Layout, usage_of
from service.api.bodies import read_body, validated
from service.api.chat import ChatFormat
from service.api.completions import CompletionFormat
from service.api.context import JobContext
from service.api.embeddings import embeddings_of
from service.api.envelope import Envelope
from service.api.errors import ApiError, describe, refusal
from service.api.requests import Job, chat_job, completion_job, embedding_job
from service.api.responses import ResponseLayout, response_job
from service.api.schemas.chat import ChatBody
from service.api.schemas.completions import CompletionBody
from service.api.schemas.embeddings import EmbeddingBody
from service.api.schemas.responses import ResponsesBody
from service.batch_files import Line, Results, read_lines
from service.command_error import CommandError
from service.engine.status import EngineDead
from service.generation import Generation, GenerationError, GenerationRefused, GenerationRequest, Piece
from service.local_engine import adapter, envelope, generated, in_parallel, running_engine
from service.progress import Progress
from service.settings import Settings

Streamed = TypeVar("Streamed", CompletionBody, ChatBody, ResponsesBody)


class BatchRequest(BaseModel):
    """A line of the file, as OpenAI has it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    custom_id: str
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Work:
    """A request's generations, and its answer once they have ended."""

    requests: Sequence[GenerationRequest]
    answer: Callable[[Sequence[Generation], Sequence[Sequence[Piece]]], BaseModel]


async def run_batch(settings: Settings, requests: Path, results: Path) -> None:
    """Answer the requests of a file that have no result in another file yet, and write their results to it.

    Raises CommandError if any request has failed, now or before, and EngineDead and CheckpointError.
    """
    lines = read_lines(requests, settings.max_body)
    if results.exists() and results.samefile(requests):
        raise CommandError(f"{results}: the results need a file of their own")
    with Results(results) as written:
        pending = [line for line in lines if line not in written]
        for line in pending:
            if line.fault is not None:
                written.add(_refused(line, line.fault))
        sound = [line for line in pending if line.fault is None]
        if sound:
            async with running_engine(settings) as context:
                await _answer_all(sound, len(lines), written, context)
    if written.failed:
        raise CommandError(f"{written.failed} of {len(lines)} requests failed; their lines in {results} say why")


async def _answer_all(pending: Sequence[Line], total: int, results: Results, context: JobContext) -> None:
    # Twice what can run: there is always a next completion, and the engine's queue stays short.
    most = 2 * context.settings.max_running
    room = _Room(most)
    with Progress(total, "requests", done=total - len(pending)) as progress:

        async def answer(line: Line) -> None:
            result, tokens = await _result(line, context, room)
            results.add(result)
            progress.add(tokens)

        try:
            await in_parallel(pending, most, answer)
        except EngineDead as error:
            raise EngineDead(f"{error}; the same command goes on from here") from None


async def _result(line: Line, context: JobContext, room: "_Room") -> tuple[dict[str, Any], int]:
    """The result of a request, and the number of tokens that were generated for it. Raises EngineDead."""
    name = f"batch_req_{uuid4().hex}"
    own, tokens = envelope(), 0
    try:
        request = read_body(line.text, adapter(BatchRequest), context.settings)
        if request.url not in _ROUTES:
            raise refusal("url", f"is not answered in a batch; {', '.join(_ROUTES)} are")
    except ApiError as error:
        return _refused(line, error), 0
    status, answer = 200, None
    try:
        work = await _ROUTES[request.url](request.body, context, own)
        async with room.taken(len(work.requests)):
            generations, pieces = await generated(context, work.requests)
        tokens = sum(generation.completion_tokens for generation in generations)
        answer = work.answer(generations, pieces)
    except (ApiError, GenerationError, GenerationRefused) as error:
        said = describe(error)
        status, answer = said.status_code, said.body
    body = answer.model_dump(mode="json", exclude_unset=True)
    response = {"status_code": status, "request_id": own.record.id, "body": body}
    if own.record.ignored:
        response["ignored"] = own.record.ignored
    return {"id": name, "custom_id": line.custom_id, "response": response, "error": None}, tokens


def _refused(line: Line, error: ApiError) -> dict[str, Any]:
    """The result of a line that is no request."""
    said = {"code": "invalid_request", "message": f"Line {line.number}: {error.detail}"}
    return {"id": line.id, "custom_id": line.custom_id, "response": None, "error": said}


async def _completion(fields: Mapping[str, Any], context: JobContext, envelope: Envelope) -> _Work:
    job = await completion_job(_unstreamed(CompletionBody, fields, context), context, envelope)
    return _laid_out(job, CompletionFormat(job, context))


async def _chat(fields: Mapping[str, Any], context: JobContext, envelope: Envelope) -> _Work:
    job = await chat_job(_unstreamed(ChatBody, fields, context), context, envelope)
    return _laid_out(job, ChatFormat(job, context))


async def _response(fields: Mapping[str, Any], context: JobContext, envelope: Envelope) -> _Work:
    body = _unstreamed(ResponsesBody, fields, context)
    job = await response_job(body, context, envelope)
    return _laid_out(job, ResponseLayout(job, context, body))


async def _embedding(fields: Mapping[str, Any], context: JobContext, envelope: Envelope) -> _Work:
    body = validated(fields, adapter(EmbeddingBody), context.settings)
    requests = await embedding_job(body, context, envelope)
    return _Work(requests, lambda generations, _: embeddings_of(generations, body, context))


_ROUTES: Mapping[str, Callable[[Mapping[str, Any], JobContext, Envelope], Awaitable[_Work]]] = {
    "/v1/completions": _completion,
    "/v1/chat/completions": _chat,
    "/v1/responses": _response,
    "/v1/embeddings": _embedding,
}


def _unstreamed(schema: type[Streamed], fields: Mapping[str, Any], context: JobContext) -> Streamed:
    body: Streamed = validated(fields, adapter(schema), context.settings)
    if body.stream:
        raise refusal("stream", "does not go with a batch")
    return body


def _laid_out(job: Job, layout: Layout) -> _Work:
    return _Work(job.choices, lambda generations, pieces: layout.whole(pieces, usage_of(job, generations)))


class _Room:
    """Room for the completions that are at work together. A request with more of them than fit takes all of it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free = asyncio.Semaphore(size)
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def taken(self, count: int) -> AsyncIterator[None]:
        """Wait for room for so many completions, and hold it."""
        count = min(count, self._size)
        # One at a time: two requests that each wait for the rest of their room would wait for ever.
        async with self._turn:
            for _ in range(count):
                await self._free.acquire()
        try:
            yield
        finally:
            for _ in range(count):
                self._free.release()
