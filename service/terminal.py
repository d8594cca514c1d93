"""Chat and completion in a terminal: the engine without HTTP, each token printed as it comes.

A command's input is a body like any client's: it is read and checked where those are.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from service.api.context import JobContext
from service.api.errors import ApiError, describe
from service.api.requests import Job, chat_job, completion_job
from service.api.schemas.requests import ChatBody, CompletionBody
from service.command_error import CommandError
from service.generation import Generation, GenerationError, GenerationRefused
from service.local_engine import Schema, body_of, envelope, running_engine
from service.settings import Settings


async def complete_in_terminal(settings: Settings, text: str, **sampling: Any) -> None:
    """Print a continuation of `text`; `sampling` are fields of a completion request.

    Raises EngineDead, CheckpointError and CommandError.
    """
    body = _body(CompletionBody, {"prompt": text, **sampling}, settings)
    async with _running(settings) as context:
        await _print(await completion_job(body, context, envelope()), context)


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
            answer = await _print(await chat_job(body, context, envelope()), context)
            messages.append({"role": "assistant", "content": answer})


def _body(schema: type[Schema], fields: dict[str, Any], settings: Settings) -> Schema:
    """The body with these fields. Raises CommandError if it is not valid."""
    try:
        return body_of(schema, fields, settings)
    except ApiError as error:
        raise CommandError(error.detail) from None


@asynccontextmanager
async def _running(settings: Settings) -> AsyncIterator[JobContext]:
    """An engine and all that a job for it is made with. Refusals of the block are raised as CommandError."""
    async with running_engine(settings) as context:
        try:
            yield context
        except (ApiError, GenerationError, GenerationRefused) as error:
            raise CommandError(describe(error).detail) from None
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            raise CommandError(f"the terminal's encoding is {error.encoding}, which this text does not fit") from None


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
