"""Chat, completion and inspections in a terminal: the engine without HTTP, each token printed as it comes.

A command's input is a body like any client's: it is read and checked where those are.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.api.context import JobContext
from service.api.errors import ApiError, describe, renamed
from service.api.requests import Job, chat_job, completion_job
from service.api.schemas.chat import ChatBody
from service.api.schemas.completions import CompletionBody
from service.api.schemas.inspect import InspectBody
from service.command_error import CommandError
from service.conversation import Messages, changed, system_message
from service.generation import Generation, GenerationError, GenerationRefused
from service.inspection.arrays import Inspection
from service.inspection.drawing import Canvas, drawn
from service.inspection.npz import write_npz
from service.inspection.page import page_of
from service.local_engine import Schema, body_of, envelope, inspected, running_engine
from service.settings import Settings

_FLAGS = {"response_format.json_schema.schema": "schema"}
"""Fields of requests that are flags of another name."""


async def complete_in_terminal(settings: Settings, text: str, **sampling: Any) -> None:
    """Print a continuation of `text`; `sampling` are fields of a completion request.

    Raises EngineDead, CheckpointError and CommandError.
    """
    body = _body(CompletionBody, {"prompt": text, **sampling}, settings)
    async with running_engine(settings) as context:
        with _plainly():
            await _print(await completion_job(body, context, envelope()), context)


async def chat_in_terminal(settings: Settings, system: str, **sampling: Any) -> None:
    """Take turns until the input ends; `sampling` are fields of a chat request.

    Each turn sends the whole conversation; the prefix cache makes that cheap. A line that is refused changes nothing.
    On a terminal the chat goes on then; elsewhere the refusal is raised as CommandError.
    """
    messages = system_message(system)
    trial = changed(messages, "Hello").messages
    _body(ChatBody, {"messages": trial, **sampling}, settings)  # Before anything slow, as far as it can be checked.
    async with running_engine(settings) as context:
        if context.template is None:
            raise CommandError(f"{context.model_name} has no chat template; use headlight complete")
        print(f"{context.model_name}: /help lists commands, an empty line or Ctrl-D ends the chat, Ctrl-C the program.")
        while True:
            try:
                with _plainly():
                    if not (line := await _ask()):
                        return
                    messages = await _turn(messages, line, sampling, context)
            except CommandError as error:
                if not sys.stdin.isatty():
                    raise
                print(error)


async def _turn(messages: Messages, line: str, sampling: Mapping[str, Any], context: JobContext) -> Messages:
    """The conversation after a line, and the answer that it may get."""
    change = changed(messages, line)
    if change.says:
        print(change.says)
    if not change.answers:
        return change.messages
    body = _body(ChatBody, {"messages": change.messages, **sampling}, context.settings)
    answer = await _print(await chat_job(body, context, envelope()), context)
    return [*change.messages, {"role": "assistant", "content": answer}]


async def inspect_in_terminal(
    settings: Settings, fields: Mapping[str, Any], *, npz: str | None, html: str | None
) -> None:
    """Draw what a request with these fields sees inside the model, or write it to files.

    Raises EngineDead, CheckpointError, CommandError and OSError.
    """
    body = _body(InspectBody, dict(fields), settings)
    async with running_engine(settings) as context:
        with _plainly():
            answer = await inspected(context, body)
            inspection = Inspection.of(answer)
            if npz is not None:
                write_npz(Path(npz), inspection)
            if html is not None:
                Path(html).write_text(page_of(answer), "utf-8")
            if npz is html is None:
                _draw(inspection)


def _draw(inspection: Inspection) -> None:
    on_terminal = sys.stdout.isatty()
    # A file or a pipe gets lines as wide as a terminal commonly is, unless COLUMNS says otherwise.
    canvas = Canvas(shutil.get_terminal_size().columns, coloured=on_terminal and not os.environ.get("NO_COLOR"))
    for line in drawn(inspection, canvas):
        print(line)


def _body(schema: type[Schema], fields: dict[str, Any], settings: Settings) -> Schema:
    """The body with these fields. Raises CommandError if it is not valid."""
    try:
        return body_of(schema, fields, settings)
    except ApiError as error:
        raise _as_said(error) from None


@contextmanager
def _plainly() -> Iterator[None]:
    """Raises refusals and failures of a request as CommandError."""
    try:
        yield
    except (ApiError, GenerationError, GenerationRefused) as error:
        raise _as_said(describe(error)) from None
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise CommandError(f"the terminal's encoding is {error.encoding}, which this text does not fit") from None


def _as_said(error: ApiError) -> CommandError:
    """A refusal in the words of the command line."""
    return CommandError(renamed(error, lambda name: _FLAGS.get(name, name)).detail)


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
