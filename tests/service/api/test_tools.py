"""Tools in chats: what the model is told, and what a client makes of the answer, streamed or whole."""

import json
from dataclasses import replace
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from openai import AsyncOpenAI
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from service.text.tools.formats import GENERIC, HERMES, LLAMA, MISTRAL, ToolFormat
from tests.service.api.fakes import EOS, HI, LIMITS, MODEL, FakeTemplate, FakeTokenizer, calling, events, serving

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}
ROOMY = replace(LIMITS, max_context=1024)
BYTES = LLTokenizer("byte")
SEOUL, PARIS = ('{"city": "서울"}', '{"city": "Paris"}')


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


ANSWERS = {
    "text": "It rains.",
    "call": call("get_weather", SEOUL),
    "parallel": f"Let me look.\n{call('get_weather', SEOUL)}\n{call('get_weather', PARIS)}\n{call('get_time', '{}')}",
    "reasoning": f"<think>\nSeoul, then.\n</think>\n\nSure.{call('get_weather', SEOUL)}",
    "thoughts": "<think>hm</think>It rains.",
    "unknown": call("get_money", "{}"),
    "broken": '<tool_call>{"name": "get_weather", "arguments": {"city": Seoul}}</tool_call> and on',
}


def comparable(completion: Any) -> list[Any]:
    """The choices of an answer as plain data, without ids, and without fields that are null."""
    choices = []
    for choice in completion.choices:
        message = choice.message.model_dump(exclude_none=True)
        for one in message.get("tool_calls", ()):
            one.pop("id"), one.pop("index", None), one["function"].pop("parsed_arguments", None)
        message.pop("parsed", None)
        if "tool_calls" in message:
            message["content"] = message.get("content") or ""
        choices.append((choice.index, choice.finish_reason, message))
    return choices


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_is_the_whole_answer(kind: str, n: int) -> None:
    """As the openai package puts it together."""
    async with (
        serving() as server,
        AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as client,
    ):
        server.engine.text = ANSWERS[kind].encode()
        asked: dict[str, Any] = {"model": MODEL, "messages": HI, "tools": [WEATHER, TIME], "n": n, "max_tokens": 300}
        server.engine.limits = ROOMY
        whole = await client.chat.completions.create(**asked)
        state = ChatCompletionStreamState()
        async for chunk in await client.chat.completions.create(**asked, stream=True):
            state.handle_chunk(chunk)
        assert comparable(state.get_final_completion()) == comparable(whole)
        assert [choice.index for choice in whole.choices] == list(range(n))


async def answered(text: str, template: FakeTemplate | None = None, **fields: Any) -> tuple[dict[str, Any], Any]:
    """The message of a whole answer in which the engine says `text`, and the reason why it ended."""
    async with calling(template or FakeTemplate()) as caller:
        caller.engine.limits = ROOMY
        caller.engine.text = text.encode()
        response = await caller.chat(**{"tools": [WEATHER, TIME]} | fields)
        assert response.status_code == 200, response.text
        [choice] = response.json()["choices"]
        return choice["message"], choice["finish_reason"]


def called(message: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["function"]["name"], one["function"]["arguments"]) for one in message.get("tool_calls", ())]


async def test_calls_have_openais_form() -> None:
    message, reason = await answered(ANSWERS["call"])
    [one] = message.pop("tool_calls")
    assert one.pop("id").startswith("call_")
    assert one == {"type": "function", "function": {"name": "get_weather", "arguments": SEOUL}}
    assert message == {"role": "assistant", "content": None, "refusal": None}
    assert reason == "tool_calls"
    message, reason = await answered(ANSWERS["parallel"])
    assert called(message) == [("get_weather", SEOUL), ("get_weather", PARIS), ("get_time", "{}")]
    assert len({one["id"] for one in message["tool_calls"]}) == 3
    assert message["content"] == "Let me look."


async def test_what_is_no_call_is_content() -> None:
    for kind in ("text", "unknown"):
        message, reason = await answered(ANSWERS[kind])
        assert (message["content"], reason) == (ANSWERS[kind], "stop")
        assert "tool_calls" not in message
    message, _ = await answered(ANSWERS["broken"])
    assert (message["content"], called(message)) == (" and on", [("get_weather", '{"city": Seoul}}')])


async def test_an_answer_that_is_cut_off_says_so() -> None:
    message, reason = await answered(ANSWERS["call"], max_tokens=len(ANSWERS["call"].partition("울")[0].encode()))
    assert (called(message), reason) == ([("get_weather", '{"city": "서')], "length")
    message, reason = await answered(ANSWERS["call"], max_tokens=40)
    assert (message["content"], reason) == (ANSWERS["call"][:40], "length")


async def test_one_call_where_the_client_wants_no_parallel_ones() -> None:
    message, reason = await answered(ANSWERS["parallel"], parallel_tool_calls=False)
    assert (called(message), reason) == ([("get_weather", SEOUL)], "tool_calls")


async def test_without_tools_calls_are_text() -> None:
    for fields in ({"tools": None}, {"tool_choice": "none"}):
        message, reason = await answered(ANSWERS["call"], **fields)
        assert (message["content"], reason) == (ANSWERS["call"], "stop")


async def test_reasoning_is_apart_unless_the_client_wants_it_in_the_content() -> None:
    message, _ = await answered(ANSWERS["reasoning"])
    assert (message["reasoning_content"], message["content"]) == ("Seoul, then.", "Sure.")
    assert called(message) == [("get_weather", SEOUL)]
    message, _ = await answered(ANSWERS["thoughts"], separate_reasoning=False, tools=None)
    assert message["content"] == ANSWERS["thoughts"]
    message, _ = await answered(ANSWERS["thoughts"], FakeTemplate(reasoning=None))
    assert message["content"] == ANSWERS["thoughts"]
    # The prompt may have opened it already.
    opened = {"messages": [*HI, {"role": "assistant", "content": "<think>"}], "continue_final_message": True}
    message, reason = await answered("hm</think>yes", **opened)
    assert (message["reasoning_content"], message["content"], reason) == ("hm", "yes", "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_markers_that_are_special_tokens_are_seen(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others stay out of the text."""
    special = {258: "[TOOL_CALLS]", 259: "[REF]", EOS: "</s>"}
    monkeypatch.setattr(FakeTokenizer, "special_text", lambda self, token: special.get(token))
    monkeypatch.setattr(FakeTokenizer, "token_bytes", lambda self, token: special.get(token, chr(token % 256)).encode())
    async with calling(FakeTemplate(MISTRAL)) as caller:
        caller.engine.limits = ROOMY
        caller.engine.text = [*b"Well. ", 259, 258, *b'[{"name": "get_time", "arguments": {}}]']
        response = await caller.chat(tools=[TIME], stream=stream)
        if stream:
            state = ChatCompletionStreamState()
            for chunk in events(response)[:-1]:
                state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
            choice = state.get_final_completion().choices[0].model_dump()
        else:
            [choice] = response.json()["choices"]
        assert (choice["message"]["content"], called(choice["message"])) == ("Well.", [("get_time", "{}")])
        assert len(choice["message"]["tool_calls"][0]["id"]) == 9
        # Nobody reads them where there are no tools.
        plain = (await caller.chat()).json()["choices"][0]["message"]["content"]
        assert plain == 'Well. [{"name": "get_time", "arguments": {}}]'


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HERMES, call("get_weather", SEOUL)),
        (LLAMA, f'{{"name": "get_weather", "parameters": {SEOUL}}}'),
        (MISTRAL, f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {SEOUL}}}]'),
        (GENERIC, f'{{"name": "get_weather", "arguments": {SEOUL}}}'),
    ],
)
async def test_the_form_is_that_of_the_models_template(form: ToolFormat, text: str) -> None:
    message, reason = await answered(text, FakeTemplate(form))
    assert (called(message), reason) == ([("get_weather", SEOUL)], "tool_calls")


def strict(tool: dict[str, Any]) -> dict[str, Any]:
    return tool | {"function": tool["function"] | {"strict": True}}


NAMED = {"type": "function", "function": {"name": "get_time"}}
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
JSON = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
YES, NO_TIME = '{"answer": "yes"}', call("get_time", "{}")
ALLOWED: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"tool_choice": "required"}, [ANSWERS["call"], NO_TIME, f"<think>hm</think>{NO_TIME}"], ["yes", YES]),
    ({"tool_choice": "required", "response_format": JSON}, [NO_TIME], ["yes", YES]),
    ({"tool_choice": "required"}, [], [call("get_weather", '{"city": 3}'), call("get_time", '{"x": 1}')]),
    ({"tool_choice": "required"}, [f"{NO_TIME}\n{NO_TIME}"], []),
    ({"tool_choice": "required", "parallel_tool_calls": False}, [NO_TIME], [f"{NO_TIME}\n{NO_TIME}"]),
    ({"tool_choice": NAMED}, [NO_TIME], [ANSWERS["call"], f"{NO_TIME}\n{NO_TIME}", "yes"]),
    ({"tools": [strict(WEATHER), TIME]}, ["yes", ANSWERS["call"]], [call("get_weather", '{"city": 3}')]),
    ({"tools": [strict(WEATHER), TIME]}, [call("get_time", '{"x": 1}')], ["<tool_call>no"]),
    ({"response_format": JSON}, [YES, NO_TIME, f"<think>hm</think>{YES}"], ["yes", "{}"]),
    ({"response_format": JSON, "tools": None}, [YES, f"<think>hm</think>{YES}"], ["yes", NO_TIME]),
]


@pytest.mark.parametrize(("fields", "fit", "unfit"), ALLOWED)
async def test_what_has_to_hold_is_in_the_grammar(fields: dict[str, Any], fit: list[str], unfit: list[str]) -> None:
    async with calling() as caller:
        caller.engine.limits = ROOMY
        response = await caller.chat(**{"tools": [WEATHER, TIME]} | fields)
        assert response.status_code == 200, response.text
        grammar = caller.engine.streams[-1].grammar
        assert grammar is not None
        for text, fits in [*((text, True) for text in fit), *((text, False) for text in unfit)]:
            matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(grammar.source), log_level=0)
            assert not matcher.is_error(), matcher.get_error()
            assert (all(map(matcher.consume_token, text.encode())) and matcher.is_accepting()) == fits, text


async def test_without_such_a_choice_there_is_no_grammar() -> None:
    async with calling() as caller:
        caller.engine.limits = ROOMY
        for fields in ({"tools": [WEATHER]}, {"tools": [strict(WEATHER)], "tool_choice": "none"}, {}):
            assert (await caller.chat(**fields)).status_code == 200
            assert caller.engine.streams[-1].grammar is None
        # One that has no room for reasoning has none in its answer either.
        caller.engine.text = b"<think>hm</think>"
        response = await caller.chat(structured_outputs={"regex": "<think>hm</think>"})
        assert response.json()["choices"][0]["message"]["content"] == "<think>hm</think>"


async def test_tools_are_refused_where_the_form_is_unknown() -> None:
    async with calling(FakeTemplate(tool_format=None)) as caller:
        error = (await caller.chat(tools=[TIME])).json()["error"]
        assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")
        assert (await caller.chat(tools=[TIME], tool_choice="none")).status_code == 200


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/tokenize"])
async def test_the_template_is_told_of_tools_and_of_calls(route: str) -> None:
    calls: list[dict[str, Any]] = [
        {"id": "a1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    ]
    parsed = {"index": 0, "function": calls[0]["function"] | {"parsed_arguments": {}}}
    messages = [
        *HI,
        {
            "role": "assistant",
            "content": None,
            "parsed": {},
            "tool_calls": [calls[0] | parsed],
            "reasoning_content": "hm",
        },
        {"role": "tool", "tool_call_id": "a1", "content": [{"type": "text", "text": "noon"}]},
        {"role": "function", "name": "get_time", "content": "one"},
        {"role": "assistant", "content": "One.", "tool_calls": []},
    ]
    hinted = TIME | {"cache_control": {"type": "ephemeral"}}
    async with calling() as caller:
        caller.engine.limits = ROOMY
        response = await caller.http.post(route, json={"messages": messages, "tools": [WEATHER, hinted]})
        assert response.status_code == 200, response.text
        prompt = caller.engine.streams[-1].prompt if "chat" in route else response.json()["tokens"]
        assert bytes(prompt).decode() == (
            f"{json.dumps(WEATHER)}|{json.dumps(TIME)}|user:hi|assistant:None|tool_calls={calls}|reasoning_content=hm|"
            "tool:noon|tool_call_id=a1|tool@get_time:one|assistant:One.|assistant:"
        )


async def test_an_answer_with_calls_can_be_sent_back_as_history() -> None:
    for kind in ("parallel", "reasoning", "broken"):
        message, _ = await answered(ANSWERS[kind])
        results = [{"role": "tool", "tool_call_id": one["id"], "content": "x"} for one in message["tool_calls"]]
        await answered("yes", messages=[*HI, message, *results])
