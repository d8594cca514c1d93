import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.text.message import MessageForm, MessageReader
from service.text.reasoning import ReasoningFormat
from service.text.tools.formats import GENERIC, HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, ToolFormat
from service.text.tools.json_reader import MOST_NESTED
from tests.service.text.training import deterministic

NAMES = ("f", "get_weather")
FORMS = (HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, GENERIC)
THINK = ReasoningFormat("<think>", "</think>")

Message = tuple[str, str, list[tuple[str, str]]]
"""(reasoning, content, [(name, arguments)])"""


def read(form: ToolFormat | None, *pieces: str, **options: Any) -> Message:
    """The message, put together as a client does it from the deltas of a stream."""
    reader = MessageReader(MessageForm(calls=form, functions=NAMES, **options))
    reasoning = content = ""
    calls: list[tuple[str, str]] = []
    for index, piece in enumerate(pieces or ("",)):
        delta = reader.push(piece, last=index >= len(pieces) - 1)
        reasoning += delta.reasoning
        content += delta.content
        for call in delta.calls:
            if call.name is not None:
                assert call.index == len(calls)
                calls.append((call.name, ""))
            assert call.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + call.arguments)
        assert reader.calls == len(calls)
    return reasoning, content, calls


F = '{"name": "f", "arguments": {"a": 1}}'
CALL = ("f", '{"a": 1}')


@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        (HERMES, f"<tool_call>\n{F}\n</tool_call>", "", [CALL]),
        (HERMES, f"Let me see.\n<tool_call>{F}</tool_call>\n<tool_call>{F}</tool_call>\n", "Let me see.", [CALL, CALL]),
        (HERMES, f"<tool_call>{F}</tool_call> done", " done", [CALL]),
        (HERMES, f"<tool_call>{F}", "", [CALL]),
        (HERMES, f"<tool_call>{F[:-1]},<tool_call>{F}</tool_call>", ",", [CALL, CALL]),
        (HERMES, f"<tool_call>{F}</tool_", "", [CALL]),
        (HERMES, f"<tool_call>[{F}, {F}]</tool_call>", "", [CALL, CALL]),
        (HERMES, '<tool_call>{"arguments": {"a": "</tool_call>"}, "name": "f"}', "", [("f", '{"a": "</tool_call>"}')]),
        (HERMES, '<tool_call>{"id": [1.5e3, {}], "name": "f"}</tool_call>', "", [("f", "{}")]),
        (HERMES, '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
        (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\u00e9\\"}"}', "", [("f", '{"a": "é"}')]),
        (HERMES, '<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', "", [CALL]),
        (HERMES, '<tool_call>{"name": "g\\u0065t_weather", "arguments": {}}</tool_call>', "", [("get_weather", "{}")]),
        (LLAMA, '{"name": "f", "parameters": {"a": 1}}', "", [CALL]),
        (LLAMA, f"\n<|python_tag|>{F}; {F};{F}", "", [CALL] * 3),
        (LLAMA, "{} is an object", "{} is an object", []),
        (LLAMA, f"So: {F}", f"So: {F}", []),
        (MISTRAL, f"[TOOL_CALLS] [{F}, {F}]", "", [CALL, CALL]),
        (MISTRAL, f"[TOOL_CALLS][{F}, {{]", ", {]", [CALL]),
        (MISTRAL, f"[TOOL_CALLS][{F}", "", [CALL]),
        (MISTRAL, f"[TOOL_CALLS][{F},", "", [CALL]),
        (MISTRAL_NAMED, '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]get_weather{}', "", [CALL, ("get_weather", "{}")]),
        (MISTRAL_NAMED, "[TOOL_CALLS]unknown[ARGS]{}", "[TOOL_CALLS]unknown[ARGS]{}", []),
        (GENERIC, F, "", [CALL]),
        (GENERIC, f" [{F},\n{F}] ", "", [CALL, CALL]),
        (GENERIC, '{"name": "Ann", "arguments": {}}', '{"name": "Ann", "arguments": {}}', []),
        (None, f"<tool_call>{F}</tool_call>", f"<tool_call>{F}</tool_call>", []),
    ],
)  # fmt: skip
def test_calls_and_text(form: ToolFormat | None, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert read(form, text) == ("", content, calls)
    assert read(form, *text) == ("", content, calls)


NO_CALLS = [
    *("{", "{}", "[]", "[1]", '"f"', '{"name": "f"', '{"name": "f", "arguments": 3}', '{"name": 1, "arguments": {}}'),
    *('{"name": "g", "arguments": {}}', '{"arguments": {}}', '{"name": "f" "arguments": {}}', "{'name': 'f'}"),
    *('{"name": "f", "arguments": "x"}', '{"name": "f", "arguments": "\\ud800"}', '{"name": "\\ud800"}', '{"a": 01}'),
    *('{"a": "\n"}', '{"a": "\\x"}', '{"a": [1,]}', '{"a": tru}', "function f()", "", "<", "]"),
    '{"name": "f", "arguments": "[',
    '{"arguments": {"a": x}, "name": "f"}',
    '{"a": ' + "[" * MOST_NESTED,
    '{"a": ' + "9" * 1000,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("wrong", NO_CALLS)
def test_what_is_no_call_stays_text(form: ToolFormat, wrong: str) -> None:
    text = f" {form.opening} {wrong}{form.closing}\n"
    assert read(form, text) == read(form, *text) == ("", text, [])


@pytest.mark.parametrize("form", [HERMES, MISTRAL, MISTRAL_NAMED, LLAMA], ids=lambda form: form.name)
def test_a_call_after_a_wrong_one_is_found(form: ToolFormat) -> None:
    wrong = f"{form.opening}{{{form.opening}{form.opening[:3]}"
    good = f"f{form.between}" + '{"a": 1}' if form.name_outside else F
    assert read(form, f"{wrong}{form.opening}{good}{form.closing}") == ("", wrong, [CALL])


def test_arguments_that_turn_out_wrong_stay_with_their_call() -> None:
    begun = '{"name": "f", "arguments": {"a": '
    assert read(HERMES, f"<tool_call>{begun}x}}</x}}</tool_call>after") == ("", "after", [("f", '{"a": x}</x}')])
    assert read(HERMES, f"<tool_call>{begun}1") == ("", "", [("f", '{"a": 1')])
    assert read(GENERIC, f"{begun}x}} and on") == ("", "", [("f", '{"a": x} and on')])
    # What is wrong after the arguments is text.
    assert read(HERMES, f"<tool_call>{F[:-1]}, x") == ("", ", x", [CALL])


def test_without_parallel_calls_the_message_ends_with_its_first() -> None:
    text = f"Hm. <tool_call>{F}</tool_call>\n<tool_call>{F}</tool_call> done"
    assert read(HERMES, text, parallel=False) == read(HERMES, *text, parallel=False) == ("", "Hm.", [CALL])
    assert read(GENERIC, f"[{F}, {F}]", parallel=False) == ("", "", [CALL])


def test_arguments_come_while_they_are_written() -> None:
    reader = MessageReader(MessageForm(calls=HERMES, functions=NAMES))
    assert not reader.push('<tool_call>{"name": "f", "arguments": ')
    [begun] = reader.push("{").calls
    assert (begun.index, begun.name, begun.arguments) == (0, "f", "{")
    [more] = reader.push('"a": "b').calls
    assert (more.index, more.name, more.arguments) == (0, None, '"a": "b')


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("<think>\nhm\n</think>\n\nyes\n", False, "hm", "yes\n"),
        ("\n<think></think>yes", False, "", "yes"),
        ("hm</think> yes", True, "hm", "yes"),
        ("hm <think> </think> yes </think>", True, "hm <think>", "yes </think>"),
        ("<think>hm </thi", False, "hm </thi", ""),
        ("hm \n", True, "hm", ""),
        (" <thin", False, "", " <thin"),
        (" yes <think>hm</think>", False, "", " yes <think>hm</think>"),
        ("  ", False, "", "  "),
    ],
)
def test_reasoning(text: str, opened: bool, reasoning: str, content: str) -> None:
    options: dict[str, Any] = {"reasoning": THINK, "reasoning_opened": opened}
    assert read(None, text, **options) == read(None, *text, **options) == (reasoning, content, [])


def test_calls_are_looked_for_after_the_reasoning() -> None:
    text = f"<think>I could say {F} or <tool_call>{F}</tool_call>.</think>\n"
    for form, call in ((HERMES, f"<tool_call>{F}</tool_call>"), (GENERIC, F)):
        reasoning, content, calls = read(form, text + call, reasoning=THINK)
        assert reasoning.startswith("I could say")
        assert (content, calls) == ("", [CALL])


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<think>", "</think>"),
    *(F, f"[{F}, {F}]"),
    *('{"name": "f", ', '"arguments": {', '"parameters": ', '"x": [1, -2.5e3, true]', '{"a": "\\"<"}'),
    *('"name": "f"', "f"),
    *("}", "]", "{", "[", ",", ";", ":", " ", "\n", "한", "text", '"', "\\", "get_weather", "null", "1"),
]  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("parallel", [True, False])
@deterministic
@given(text=texts, places=st.lists(st.integers(0, 400), max_size=12), thinks=st.booleans())
def test_every_way_of_cutting_gives_the_same(
    form: ToolFormat, parallel: bool, text: str, places: list[int], thinks: bool
) -> None:
    options: dict[str, Any] = {"parallel": parallel, "reasoning": THINK if thinks else None}
    whole = read(form, text, **options)
    assert read(form, *cut(text, places), **options) == whole
    assert read(form, *text, **options) == whole


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@deterministic
@given(text=texts)
def test_nothing_is_lost_without_a_call(form: ToolFormat, text: str) -> None:
    _, content, calls = read(form, text)
    assert calls or content == text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(st.text(max_size=4), values, max_size=3)


def written(form: ToolFormat, calls: list[tuple[str, dict[str, Any]]], **style: Any) -> str:
    """Calls as a model of this form writes them."""
    if form.name_outside:
        return "".join(f"{form.opening}{name}{form.between}{json.dumps(given, **style)}" for name, given in calls)
    objects = [json.dumps({"name": name, form.arguments: given}, **style) for name, given in calls]
    if form.in_list:
        return f"{form.opening}[{', '.join(objects)}]{form.closing}"
    if form.separator:
        return form.opening + f"{form.separator} ".join(objects)
    return "\n".join(f"{form.opening}\n{one}\n{form.closing}" for one in objects)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@deterministic
@given(
    calls=st.lists(st.tuples(st.sampled_from(NAMES), arguments), min_size=1, max_size=3),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 2]),
    places=st.lists(st.integers(0, 400), max_size=8),
)
def test_good_calls_arrive(
    form: ToolFormat, calls: list[tuple[str, dict[str, Any]]], ascii_only: bool, indent: int | None, places: list[int]
) -> None:
    text = written(form, calls, ensure_ascii=ascii_only, indent=indent)
    _, content, found = read(form, *cut(text, places))
    assert content == ""
    assert [(name, json.loads(given)) for name, given in found] == calls
