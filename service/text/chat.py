"""Conversations to tokens, by the model's own chat template.

Special tokens written by the template become those tokens. The same text inside a message stays plain text, so that
nobody can end a turn or open one by writing it. Knows nothing of HTTP.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Self

from model.checkpoint.errors import CheckpointError, label
from service.text.markers import is_unmistakable, template_markers
from service.text.reasoning import reasoning_format_of
from service.text.sandbox import SandboxedTemplate, TemplateError
from service.text.tokenizer import VocabularyTokenizer
from service.text.tools.formats import format_of
from service.text.tools.json_reader import MOST_NESTED, nests_within
from service.text.tools.plain import plain_conversation

logger = logging.getLogger(__name__)

__all__ = ["JinjaTemplate", "TemplateError"]

_PRIVATE_USE = range(0xE000, 0xF900)
"""Characters without a meaning of their own; unused ones stand in for others while a template renders."""


class JinjaTemplate:
    """The `ChatTemplate` that a template in Jinja's language is, for one tokenizer."""

    def __init__(self, source: str, tokenizer: VocabularyTokenizer) -> None:
        """The tokenizer gives the template the values of bos_token and its like. Raises TemplateError."""
        self._template = SandboxedTemplate(source)
        self._tokenizer = tokenizer
        self.variables = self._template.names
        self.tool_format = format_of(source, self.variables)
        self.reasoning_format = reasoning_format_of(source)
        self._knows_tools = "tools" in self.variables
        self._wants_text = self._knows_tools and _wants_text(self._template, tokenizer.named_tokens)
        self._characters = frozenset(source).union(*tokenizer.named_tokens.values())

    @classmethod
    def of(cls, tokenizer: VocabularyTokenizer) -> Self | None:
        """The template that came with a tokenizer; None for base models. Raises CheckpointError if it is broken."""
        if tokenizer.chat_template is None:
            return None
        try:
            template = cls(tokenizer.chat_template, tokenizer)
        except TemplateError as error:
            raise CheckpointError(f"the chat template cannot be read: {error}") from None
        _warn_of_unknown_markers(tokenizer.chat_template, tokenizer)
        return template

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        most: int | None = None,
    ) -> list[int]:
        if not self._wants_text:
            messages = [_with_objects(message) for message in messages]
        if not self._knows_tools:
            messages, tools = plain_conversation(messages, tools), None
        given: dict[str, Any] = {"messages": messages, "tools": tools, "documents": None, **(variables or {})}
        disguise = _Disguise(self._tokenizer, self._characters.union(*_strings(given)))
        hidden = disguise.put_on(given)
        if continue_final_message:
            hidden["messages"][-1] = _left_open(hidden["messages"][-1], disguise.mark)
        named = self._tokenizer.named_tokens
        text = self._template.render({**named, "add_generation_prompt": add_generation_prompt, **hidden})
        if continue_final_message:
            text = _cut_at(text, disguise.mark)
        self._tokenizer.fewest_tokens.check(text, most)
        pieces = self._tokenizer.split(text)
        return self._tokenizer.encode_pieces(
            disguise.take_off(piece) if isinstance(piece, str) else piece for piece in pieces
        )


def _warn_of_unknown_markers(source: str, tokenizer: VocabularyTokenizer) -> None:
    """Warn of markers that the model reads as ordinary words; some models learnt them so, others cannot follow."""
    unknown = sorted(
        marker
        for marker in template_markers(source, tokenizer.named_tokens)
        if is_unmistakable(marker)
        and marker.encode()
        not in map(tokenizer.token_bytes, tokenizer.encode(marker, add_special_tokens=False, parse_special=True))
    )
    if unknown:
        logger.warning(
            "the chat template writes %s, which the tokenizer has no tokens for: the model sees them letter by letter",
            ", ".join(map(label, unknown)),
        )


_PROBE: list[dict[str, Any]] = [
    {"role": "user", "content": "x"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "aaaaaaaaa", "type": "function", "function": {"name": "f", "arguments": '{"probe": 1}'}}],
    },
    {"role": "tool", "tool_call_id": "aaaaaaaaa", "content": "x"},
]
"""A conversation with a call, to see how a template writes its arguments."""


def _wants_text(template: SandboxedTemplate, named_tokens: Mapping[str, str]) -> bool:
    """Whether a template writes the arguments of calls as they are, instead of making JSON of them.

    Most templates want the object, as transformers documents it; some of the others fail on it, or write it as Python
    would.
    """

    def writes(messages: Sequence[Mapping[str, Any]]) -> bool:
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            return '"probe"' in template.render({**named_tokens, **given})
        except TemplateError:
            return False

    return not writes([_with_objects(message) for message in _PROBE]) and writes(_PROBE)


def _with_objects(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with the arguments of its calls as objects; those that are no JSON object stay text."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    functions = [{**call["function"], "arguments": _object(call["function"]["arguments"])} for call in calls]
    return {
        **message,
        "tool_calls": [{**call, "function": function} for call, function in zip(calls, functions, strict=True)],
    }


def _object(arguments: Any) -> Any:
    try:
        value = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) and nests_within(value, MOST_NESTED) else arguments


class _Disguise:
    """Makes special tokens in the values of one rendering unrecognisable, character for character.

    Every character that a special token can begin with has a stand-in that occurs nowhere else. Stand-ins are put into
    values that spell out a special token, or that end in the beginning of one which the next value could complete.
    Other values stay as they are, so that templates can search them.
    """

    def __init__(self, tokenizer: VocabularyTokenizer, used: frozenset[str]) -> None:
        firsts = sorted({text[0] for text in tokenizer.special_texts})
        unused = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        stand_ins = list(islice(unused, len(firsts) + 1))
        if len(stand_ins) <= len(firsts):
            raise TemplateError("the messages use every character of the private use area")
        self.mark = stand_ins.pop()
        """One more character that occurs nowhere, as a mark in the text."""
        self._tokenizer = tokenizer
        self._on = str.maketrans(dict(zip(firsts, stand_ins, strict=True)))
        self._off = str.maketrans(dict(zip(stand_ins, firsts, strict=True)))

    def put_on(self, value: Any) -> Any:
        """A copy of plain data, with its texts disguised where they need it."""
        match value:
            case str():
                return value.translate(self._on) if self._tokenizer.may_spell_special(value) else value
            case Mapping():
                return {self.put_on(key): self.put_on(item) for key, item in value.items()}
            case list() | tuple():
                return [self.put_on(item) for item in value]
            case _:
                return value

    def take_off(self, text: str) -> str:
        return text.translate(self._off)


def _strings(value: Any) -> Iterator[str]:
    """All texts in plain data, keys included."""
    match value:
        case str():
            yield value
        case Mapping():
            for key, item in value.items():
                yield from _strings(key)
                yield from _strings(item)
        case list() | tuple():
            for item in value:
                yield from _strings(item)


def _left_open(message: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """The message with a mark after its text, and a space that shows whether the template trims it."""
    match message.get("content"):
        case str(text):
            return {**message, "content": text + mark + " "}
        case _:
            raise TemplateError("the final message has no text to continue")


def _cut_at(text: str, mark: str) -> str:
    before, found, after = text.rpartition(mark)
    if not found:
        raise TemplateError("the chat template leaves out the final message")
    return before if after.startswith(" ") else before.rstrip()
