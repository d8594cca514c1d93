"""Requests of other APIs as the chat requests that they stand for.

A translation only renames and rearranges; every limit is the chat request's own. Refusals, and names of ignored
fields, are told in the client's words.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError

from service.api.context import JobContext
from service.api.envelope import Envelope
from service.api.errors import ApiError, explain, renamed
from service.api.fields import ignored_fields
from service.api.prompts import off_loop
from service.api.requests import Job, chat_job, tokenized
from service.api.schemas.body import Body
from service.api.schemas.chat import ChatBody
from service.api.schemas.tokens import TokenizeBody
from service.generation import GenerationRequest
from service.observability.record import RequestRecord

_TURN_CHARACTERS = 64
"""The cost of a turn's translation, as a number of characters."""

B = TypeVar("B", ChatBody, TokenizeBody)


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """A request of another API as a chat request."""

    chat: dict[str, Any]
    """The chat request, as plain JSON; fields that are None are missing."""
    names: Sequence[tuple[str, str]]
    """Regular expressions for a chat request's fields, and the names that the client knows them by."""
    ignored: list[str] = field(default_factory=list)
    """Fields of the other API that have no effect here."""

    def rename(self, name: str) -> str:
        """A field of the chat request in the client's words."""
        for pattern, word in self.names:
            name = re.sub(pattern, word, name)
        return name


async def translated_job(
    body: Body, translate: Callable[[], Translation], turns: int, context: JobContext, envelope: Envelope
) -> Job:
    """The job of a request of another API, which has about this many turns. Raises ApiError."""
    translation = await _translated(body, translate, turns, context)
    try:
        chat = _body(ChatBody, translation.chat, context)
        job = await chat_job(chat, context, envelope)
    except ApiError as error:
        raise renamed(error, translation.rename) from None
    finally:
        _note_ignored(body, translation, context, envelope.record)
    return replace(job, generations=[_in_clients_words(one, translation) for one in job.generations])


async def translated_prompt(
    body: Body, translate: Callable[[], Translation], turns: int, context: JobContext, record: RequestRecord
) -> list[int]:
    """The token ids of the prompt that such a request has. Raises ApiError."""
    translation = await _translated(body, translate, turns, context)
    own = {name: value for name, value in translation.chat.items() if name in TokenizeBody.model_fields}
    if translation.chat.get("tool_choice") == "none":
        own.pop("tools", None)
    try:
        return await tokenized(_body(TokenizeBody, own, context), context, record)
    except ApiError as error:
        raise renamed(error, translation.rename) from None
    finally:
        _note_ignored(body, translation, context, record)


async def _translated(body: Body, translate: Callable[[], Translation], turns: int, context: JobContext) -> Translation:
    refuse = context.settings.unknown_fields == "refuse"
    ignored_fields(body, refuse_unknown=refuse, template=context.template)
    return await off_loop(context, _TURN_CHARACTERS * turns, translate)


def _note_ignored(body: Body, translation: Translation, context: JobContext, record: RequestRecord) -> None:
    """Note in the record what has no effect of the client's fields, and of the chat request's."""
    own = ignored_fields(body, refuse_unknown=False, template=context.template)
    record.ignored = [*own, *translation.ignored, *map(translation.rename, record.ignored)]


def _body(kind: type[B], plain: dict[str, Any], context: JobContext) -> B:
    given = {name: value for name, value in plain.items() if value is not None}
    try:
        return kind.model_validate(given, context=context.settings)
    except ValidationError as error:
        raise explain(error) from None


def _in_clients_words(one: GenerationRequest, translation: Translation) -> GenerationRequest:
    """The generation with its grammar, which the engine may refuse, under the client's name for it."""
    grammar = one.sent.grammar
    if grammar is None:
        return one
    named = msgspec.structs.replace(grammar, field=translation.rename(grammar.field))
    return replace(one, sent=msgspec.structs.replace(one.sent, grammar=named))
