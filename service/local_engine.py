"""An engine of one's own, without HTTP: for the terminal, for batches, and for programs that import `headlight`.

A request's body is read and checked where those of HTTP clients are.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter

from service.api.bodies import read_body
from service.api.context import JobContext
from service.api.envelope import Envelope
from service.api.errors import ApiError
from service.api.inspect import InspectionBuilder, InspectionParts
from service.api.requests import inspect_job
from service.api.schemas.inspect import InspectBody
from service.api.schemas.inspection import Inspection
from service.engine.client import ChannelClient
from service.generation import Generation, GenerationRequest, Piece, interleave
from service.model_files import locate
from service.observability.record import RequestRecord
from service.processes.engine_config import engine_config
from service.processes.engine_keeper import EngineKeeper
from service.served_model import check_ends, read_served_model
from service.settings import Settings

Schema = TypeVar("Schema", bound=BaseModel)
T = TypeVar("T")


@asynccontextmanager
async def running_engine(settings: Settings) -> AsyncIterator[JobContext]:
    """A loaded engine and all that a job for it is made with. Raises CheckpointError and EngineDead."""
    source = locate(settings)
    served, client = read_served_model(settings, source), ChannelClient()
    context = JobContext(
        settings=settings,
        model_names=served.model_names,
        client=client,
        tokenizer=served.tokenizer,
        template=served.template,
        sampling=served.sampling,
    )
    keeper = EngineKeeper(
        engine_config(settings, source), client.follow, timeout_seconds=settings.engine_timeout_seconds
    )
    await keeper.start()
    try:
        await client.ready()
        check_ends(served, client.limits)
        yield context
    finally:
        await keeper.stop()


def body_of(schema: type[Schema], fields: Mapping[str, Any], settings: Settings) -> Schema:
    """The request body with these fields. Raises ApiError if it is not valid, or no JSON."""
    try:
        text = json.dumps(fields)
    except (TypeError, ValueError, RecursionError) as error:
        raise ApiError(400, f"The request is not JSON: {error}.") from None
    body: Schema = read_body(text.encode(), adapter(schema), settings)
    return body


@cache
def adapter(schema: type[Schema]) -> TypeAdapter[Schema]:
    """Pydantic's reader of a schema, built once."""
    return TypeAdapter(schema)


def envelope() -> Envelope:
    """The envelope of a request that came without HTTP."""
    return Envelope(RequestRecord(method="other"), caller="", patience=None)


async def generated(
    context: JobContext, requests: Sequence[GenerationRequest]
) -> tuple[list[Generation], list[list[Piece]]]:
    """The ended generations of all requests, and the pieces of each. Raises as `Generation` does."""
    pieces: list[list[Piece]] = [[] for _ in requests]
    with ExitStack() as stack:
        generations = [
            stack.enter_context(Generation(context.client, context.tokenizer, request)) for request in requests
        ]
        async with aclosing(interleave(generations)) as arriving:
            async for index, piece in arriving:
                pieces[index].append(piece)
    return generations, pieces


async def inspected(context: JobContext, body: InspectBody) -> Inspection:
    """The answer to a request to look inside, with all digits. Raises ApiError, and as `Generation` does."""
    job = await inspect_job(body, context, envelope())
    [generation], [pieces] = await generated(context, [job])
    return InspectionBuilder(body, context, job, InspectionParts.of(generation, pieces)).inspection()


async def in_parallel(items: Iterable[T], at_once: int, work: Callable[[T], Awaitable[None]]) -> None:
    """Work on items, begun in their order, `at_once` at a time at most. The first exception ends the work on all."""
    waiting = iter(items)

    async def take() -> None:
        for item in waiting:
            await work(item)

    tasks = [asyncio.create_task(take()) for _ in range(at_once)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
