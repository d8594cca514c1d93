"""Prompts: texts and conversations as token ids, large ones in threads so that other requests' tokens don't wait."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from service.api.context import JobContext
from service.api.errors import refusal
from service.api.fields import template_variables
from service.api.lengths import Room
from service.api.schemas.chat import ChatBody, Message
from service.api.schemas.tokens import TokenizeBody
from service.api.tools import check_tools, told_tools
from service.text.chat import TemplateError
from service.text.fewest_tokens import TooLongError
from service.text.spans import Span, spans_of

_INLINE_CHARACTERS = 16_384
"""Longer texts are tokenised in a thread, so that other requests' tokens don't wait."""

_LONG_CHARACTERS = 262_144
"""Longer texts are tokenised one at a time: each takes 50 times its size in memory, and slows the event loop."""

_TURN_CHARACTERS = 64
"""The cost of a message without text in a template, as a number of characters."""

_ROLES = {"developer": "system", "function": "tool"}
"""Names of roles that chat templates don't know, and those that they know."""

T = TypeVar("T")


def prompt_list(prompt: Any) -> list[str] | list[list[int]]:
    """The prompts as a list, also when there is only one."""
    return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]


async def encode_prompt(
    prompt: str | list[int], add_special_tokens: bool, context: JobContext, room: Room
) -> list[int]:
    """The token ids of a prompt that is a text, or ids already. Raises as `encode_text` does."""
    if isinstance(prompt, str):
        return await encode_text(prompt, add_special_tokens, context, room)
    return prompt


async def encode_text(text: str, add_special_tokens: bool, context: JobContext, room: Room | None) -> list[int]:
    """The token ids of a text, whose special tokens are honoured.

    Raises InvalidTextError, and ApiError for a text that is too long for a `room`.
    """

    def encode(most: int | None) -> list[int]:
        return context.tokenizer.encode(text, add_special_tokens=add_special_tokens, parse_special=True, most=most)

    return await _within(room, context, len(text), encode)


async def encode_messages(
    body: ChatBody | TokenizeBody,
    messages: list[Message],
    context: JobContext,
    room: Room | None,
    *,
    add_special_tokens: bool,
) -> list[int]:
    """The conversation through the model's chat template, as token ids.

    Raises ApiError, also for a conversation that is too long for a `room`.
    """
    template = context.template
    if template is None:
        raise refusal("messages", "need a chat template, and this model has none; use /v1/completions")
    if body.continue_final_message and body.add_generation_prompt:
        raise refusal("add_generation_prompt", "and continue_final_message exclude each other")
    if body.continue_final_message and messages[-1].role != "assistant":
        raise refusal("continue_final_message", "needs the last message to be the assistant's")

    check_tools(body, template)
    turns = [_turn(message) for message in messages]
    tools = told_tools(body)
    variables = template_variables(body)
    begin = not body.continue_final_message if body.add_generation_prompt is None else body.add_generation_prompt

    def render(most: int | None) -> list[int]:
        return template.encode(
            turns,
            add_generation_prompt=begin,
            continue_final_message=body.continue_final_message,
            tools=tools,
            variables=variables,
            most=most,
        )

    try:
        tokens = await _within(room, context, _TURN_CHARACTERS * len(turns) + _characters([turns, tools]), render)
    except TemplateError as error:
        raise refusal("messages", f"do not suit the model's chat template: {error}") from None
    bos = context.tokenizer.bos_token_id
    return [bos, *tokens] if add_special_tokens and bos is not None else tokens


async def _within(
    room: Room | None, context: JobContext, characters: int, encode: Callable[[int | None], list[int]]
) -> list[int]:
    """The tokens that `encode` makes of this many characters, given the most that fit into a room.

    Raises ApiError where the length alone shows that there are more; the room counts the tokens of the others.
    """
    try:
        return await off_loop(context, characters, lambda: encode(None if room is None else room.tokens))
    except TooLongError as error:
        assert room is not None
        raise room.too_long(f"at least {error.fewest} tokens") from None


def _turn(message: Message) -> dict[str, Any]:
    """A message as chat templates take it."""
    parts = message.content if isinstance(message.content, list) else None
    turn: dict[str, Any] = {
        "role": _ROLES.get(message.role, message.role),
        "content": "".join(part.text for part in parts) if parts else message.content,
    }
    if message.tool_calls:
        turn["tool_calls"] = [
            call.model_dump(exclude_none=True, exclude={"index": True, "function": {"parsed_arguments"}})
            for call in message.tool_calls
        ]
    told = {name: getattr(message, name) for name in ("name", "tool_call_id", "reasoning_content")}
    return turn | {name: value for name, value in told.items() if value is not None}


def _characters(value: Any) -> int:
    """Number of characters in all texts of plain data."""
    match value:
        case str():
            return len(value)
        case dict():
            return sum(_characters(key) + _characters(item) for key, item in value.items())
        case list():
            return sum(map(_characters, value))
        case _:
            return 0


async def places_of(tokens: list[int], body: TokenizeBody, context: JobContext) -> list[Span]:
    """The places of the tokens of a valid body: in its prompt, or for messages in the text that they decode to."""
    tokenizer, prompt = context.tokenizer, body.prompt
    if prompt is None:
        return await off_loop(context, len(tokens), lambda: spans_of(tokenizer, tokens))
    framed = body.add_special_tokens is not False
    _, spans = await off_loop(
        context, len(prompt), lambda: tokenizer.locate(prompt, add_special_tokens=framed, parse_special=True)
    )
    return spans


async def echoed(prompt: str | list[int], context: JobContext) -> str:
    """The text of a prompt, special tokens included."""
    if isinstance(prompt, str):
        return prompt
    return await off_loop(context, len(prompt), lambda: context.tokenizer.decode(prompt, skip_special_tokens=False))


async def off_loop(context: JobContext, characters: int, work: Callable[[], T]) -> T:
    """The result of `work` on this many characters or tokens; large work is done in a thread."""
    if characters <= _INLINE_CHARACTERS:
        return work()
    if characters <= _LONG_CHARACTERS:
        return await asyncio.to_thread(work)
    async with context.long_texts:
        return await asyncio.to_thread(work)
