"""The grammar of calls, followed by llguidance over bytes and special tokens; the reader reads what it lets through."""

import json
import random
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from service.text.call_grammar import CallableFunction, CallRule, call_grammar
from service.text.message import MessageForm, MessageReader
from service.text.reasoning import ReasoningFormat
from service.text.tools.formats import GENERIC, HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, ToolFormat

FORMS = (HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, GENERIC)
THINK = ReasoningFormat("<think>", "</think>")
SPECIAL = ["[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "</s>"]
END = 256 + len(SPECIAL) - 1
SCHEMA = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["서울", 'Pa"ris']}},
}
FUNCTIONS = (CallableFunction("get_weather", SCHEMA), CallableFunction("말하다", {"additionalProperties": False}))


class Bytes:
    bos_token_id = None
    eos_token_id = END
    tokens = [bytes([byte]) for byte in range(256)] + [text.encode() for text in SPECIAL]
    special_token_ids = list(range(256, END + 1))  # noqa: RUF012

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


TOKENIZER = LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=END + 1, eos_token=END)


def special(text: str) -> int | None:
    return 256 + SPECIAL.index(text) if text in SPECIAL else None


def matcher(form: ToolFormat, **options: Any) -> LLMatcher:
    rule: dict[str, Any] = {"functions": FUNCTIONS, "required": True, "parallel": True}
    opened = options.pop("reasoning_opened", False)
    reasoning = options.pop("reasoning", None)
    source = call_grammar(form, CallRule(**rule | options), special, reasoning=reasoning, reasoning_opened=opened)
    found = LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(source))
    assert not found.is_error(), (source, found.get_error())
    return found


def tokens(text: str) -> list[int]:
    for index, marker in enumerate(SPECIAL):
        text = text.replace(marker, chr(0xE000 + index))
    return [
        token
        for character in text
        for token in ([256 + ord(character) - 0xE000] if "\ue000" <= character < "\ue010" else character.encode())
    ]


def fits(found: LLMatcher, text: str) -> bool:
    """Whether a text is a whole answer."""
    return all(found.consume_token(token) for token in tokens(text)) and bool(found.is_accepting())


def drawn(found: LLMatcher, seed: int, most: int = 2000) -> str | None:
    """A random answer; None if it doesn't end."""
    rng = random.Random(seed)
    ids: list[int] = []
    for _ in range(most):
        mask = found.compute_bitmask()
        allowed = [token for token in range(END + 1) if mask[token // 8] >> token % 8 & 1]
        token = END if END in allowed and rng.random() < 0.5 else rng.choice(allowed)
        if token == END:
            return b"".join(Bytes.tokens[one] for one in ids).decode()
        assert found.consume_token(token)
        ids.append(token)
    return None


def read(form: ToolFormat, text: str, **options: Any) -> tuple[str, list[tuple[str, str]]]:
    names = [function.name for function in FUNCTIONS]
    delta = MessageReader(MessageForm(calls=form, functions=names, **options)).push(text, last=True)
    return delta.content, [(call.name or "", call.arguments) for call in delta.calls]


def check(calls: Sequence[tuple[str, str]]) -> None:
    for name, arguments in calls:
        [schema] = [function.schema for function in FUNCTIONS if function.name == name]
        jsonschema.validate(json.loads(arguments), schema)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("parallel", [True, False])
def test_whatever_is_drawn_is_a_valid_call(form: ToolFormat, parallel: bool) -> None:
    counts = set()
    for seed in range(30):
        text = drawn(matcher(form, parallel=parallel), seed)
        assert text is not None
        content, calls = read(form, text)
        assert (content, bool(calls)) == ("", True), text
        check(calls)
        counts.add(len(calls))
    assert (counts == {1}) == (not parallel)


GOOD = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "서울"}}\n</tool_call>',
    "llama": '{"name": "get_weather", "parameters": {"city": "서울", "days": 2}}',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "서울"}}]',
    "mistral-named": '[TOOL_CALLS]get_weather[ARGS]{"city": "서울"}',
    "json": '{"name": "get_weather", "arguments": {"city": "서울"}}',
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_required_call_leaves_no_room_for_anything_else(form: ToolFormat) -> None:
    good = GOOD[form.name]
    assert fits(matcher(form), good)
    assert not fits(matcher(form), "It rains.")
    assert not fits(matcher(form), "")
    assert not fits(matcher(form), good.replace("서울", "Rome"))
    assert not fits(matcher(form), good.replace("get_weather", "get_time"))
    assert not fits(matcher(form, functions=FUNCTIONS[1:]), good)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_where_none_is_required_text_is_free_and_calls_are_not(form: ToolFormat) -> None:
    good = GOOD[form.name]
    for text in ("", "It rains.\nStill < and [.", good):
        assert fits(matcher(form, required=False), text), text
    assert not fits(matcher(form, required=False), good.replace("서울", "Rome"))
    if not form.bare:
        assert fits(matcher(form, required=False), f"Let me see. {good}")
        assert not fits(matcher(form, required=False), f"Let me see. {good.replace('서울', 'Rome')}")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_content_of_a_schema_or_calls(form: ToolFormat) -> None:
    content = {"type": "object", "properties": {"answer": {"type": "boolean"}}, "required": ["answer"]}
    for text, good in ((GOOD[form.name], True), ('{"answer": true}', True), ("yes", False), ('{"answer": 1}', False)):
        assert fits(matcher(form, required=False, content=content), text) == good, text


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_reasoning_comes_before(form: ToolFormat) -> None:
    good = GOOD[form.name]
    for required in (True, False):
        for text in (f"<think>\nhm {{\n</think>\n\n{good}", good):
            assert fits(matcher(form, required=required, reasoning=THINK), text), text
        assert fits(matcher(form, required=required, reasoning=THINK, reasoning_opened=True), f"hm</think>{good}")
    assert not fits(matcher(form, reasoning=THINK), "<think>hm</think>no")
    assert not fits(matcher(form, reasoning=THINK), f"<think>hm{good}")


def test_a_function_without_a_schema_takes_any_object() -> None:
    free = (CallableFunction("f", None),)
    assert fits(matcher(GENERIC, functions=free), '{"name": "f", "arguments": {"a": [1, "b"]}}')
    assert not fits(matcher(GENERIC, functions=free), '{"name": "f", "arguments": [1]}')
