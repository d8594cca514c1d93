"""Chat and completion in a terminal: the engine without HTTP, each token printed as it comes.

A command's input is a body like any client's: it is read and checked where those are.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import TypeAdapter

from service.api.bodies import read_body
from service.api.context import JobContext
from service.api.envelope import Envelope
from service.api.errors import ApiError, describe
from service.api.requests import Job, chat_job, completion_job
from service.api.schemas.requests import ChatBody, CompletionBody
from service.command_error import CommandError
from service.engine.client import ChannelClient
from service.generation import Generation, GenerationError, GenerationRefused
from service.observability.record import RequestRecord
from service.processes.engine_config import engine_config
from service.processes.engine_keeper import EngineKeeper
from service.served_model import check_ends, locate, read_served_model
from service.settings import Settings

T = TypeVar("T")


async def complete_in_terminal(settings: Settings, text: str, **sampling: Any) -> None:
    """Print a continuation of `text`; `sampling` are fields of a completion request.

    Raises EngineDead, CheckpointError and CommandError.
    """
    body = _body(CompletionBody, {"prompt": text, **sampling}, settings)
    async with _running(settings) as context:
        await _print(await completion_job(body, context, _envelope()), context)


async def chat_in_terminal(settings: Settings, system: str | None) -> None:
    """Take turns until the input ends. Each turn sends the whole conversation; the prefix cache makes that cheap."""
    messages = [{"role": "system", "content": system}] if system else []
    if messages:
        _body(ChatBody, {"messages": messages}, settings)  # Before anything slow, as far as it can be checked.
    async with _running(settings) as context:
        if context.template is None:
            raise CommandError(f"{context.model_name} has no chat template; use headlight complete")
        print(f"{context.model_name}: an empty line or Ctrl-D ends the chat, Ctrl-C ends the program.")
        while text := await _ask():
            messages.append({"role": "user", "content": text})
            body = _body(ChatBody, {"messages": messages}, settings)
            answer = await _print(await chat_job(body, context, _envelope()), context)
            messages.append({"role": "assistant", "content": answer})


def _body(schema: type[T], fields: dict[str, Any], settings: Settings) -> T:
    """The body with these fields. Raises CommandError if it is not valid."""
    try:
        return read_body(json.dumps(fields).encode(), TypeAdapter(schema), settings)
    except ApiError as error:
        raise CommandError(error.detail) from None


def _envelope() -> Envelope:
    return Envelope(RequestRecord(method="other"), caller="", patience=None)


@asynccontextmanager
async def _running(settings: Settings) -> AsyncIterator[JobContext]:
    """An engine and all that a job for it is made with. Refusals of the block are raised as CommandError."""
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
    except (ApiError, GenerationError, GenerationRefused) as error:
        raise CommandError(describe(error).detail) from None
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise CommandError(f"the terminal's encoding is {error.encoding}, which this text does not fit") from None
    finally:
        await keeper.stop()


async def _ask() -> str:
    """Read a line of input; empty at its end."""
    print("> ", end="", flush=True)
    if sys.stdin.isatty():
        # Without a thread: one that waits for input could not be stopped when Ctrl-C ends the program.
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(sys.stdin)
    return sys.stdin.readline().strip()


async def _print(job: Job, context: JobContext) -> str:
    """Print the completion of a job with one choice as it comes, and return it."""
    text = ""
    with Generation(context.client, context.tokenizer, job.generations[0]) as generation:
        async for piece in generation.pieces():
            sys.stdout.write(piece.text)
            sys.stdout.flush()
            text += piece.text
    print()
    return text
