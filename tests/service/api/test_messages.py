"""Anthropic's messages: a translation of chats, streamed or whole, as the anthropic package reads it."""

from dataclasses import replace
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import AsyncAnthropic

from service.engine.messages import Delta, Refusal
from tests.service.api.fakes import HI, LIMITS, MODEL, FakeTemplate, calling, serving
from tests.service.api.test_responses import KINDS, sse
from tests.service.api.test_tools import ANSWERS, NAMED, SCHEMA, SEOUL, TIME, WEATHER

ROOMY = replace(LIMITS, max_context=1024)
TOOLS = [
    {
        "name": "get_weather",
        "description": "The weather in a city.",
        "input_schema": WEATHER["function"]["parameters"],
    },
    {"name": "get_time", "input_schema": {"type": "object"}},
]
CHAT_TOOLS = [WEATHER, {"type": "function", "function": {**TIME["function"], "parameters": {"type": "object"}}}]
BLOCKS = {"text": "text", "reasoning": "thinking", "call": "tool_use"}


def bare(blocks: list[Any]) -> list[dict[str, Any]]:
    """Blocks of an answer without ids and what the anthropic package adds."""
    left_out = {"id", "parsed_output"}
    return [block.model_dump(exclude=left_out, exclude_none=True) for block in blocks]


async def ask(caller: Any, **fields: Any) -> httpx.Response:
    return await caller.http.post("/v1/messages", json={"messages": HI, "max_tokens": 300} | fields)


@pytest.mark.parametrize("kind", sorted(ANSWERS.keys() - {"broken"}))
async def test_a_stream_is_the_whole_message(kind: str) -> None:
    async with (
        serving() as server,
        AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0, timeout=10) as client,
    ):
        server.engine.limits, server.engine.text = ROOMY, ANSWERS[kind].encode()
        server.engine.cached_tokens = 8
        asked: dict[str, Any] = {"model": MODEL, "messages": HI, "tools": TOOLS, "max_tokens": 300}
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            rebuilt = await stream.get_final_message()
        assert bare(rebuilt.content) == bare(whole.content)
        assert [block.type for block in whole.content] == [BLOCKS[one] for one in KINDS[kind]]
        assert rebuilt.usage == whole.usage
        assert whole.stop_reason == rebuilt.stop_reason == ("tool_use" if "call" in KINDS[kind] else "end_turn")
        count = await client.messages.count_tokens(model=MODEL, messages=HI, tools=TOOLS)
        assert whole.usage.cache_read_input_tokens == 8
        assert count.input_tokens == whole.usage.input_tokens + 8


@pytest.mark.parametrize("kind", ANSWERS)
async def test_events_come_in_the_published_order(kind: str) -> None:
    async with calling() as caller:
        caller.engine.limits, caller.engine.text = ROOMY, ANSWERS[kind].encode()
        events = sse((await ask(caller, tools=TOOLS, stream=True)).text)
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events]
    unlike = [name for before, name in zip(["", *names], names, strict=False) if name != before]
    block = [f"content_block_{word}" for word in ("start", "delta", "stop")]
    assert unlike == ["message_start", *block * len(KINDS[kind]), "message_delta", "message_stop"]
    started = [data["content_block"]["type"] for name, data in events if name == "content_block_start"]
    assert started == [BLOCKS[one] for one in KINDS[kind]]
    assert events[0][1]["message"]["stop_reason"] is None


async def test_the_reason_of_an_ending() -> None:
    async with calling() as caller:
        caller.engine.limits = ROOMY
        for fields, reason, sequence in [
            ({}, "end_turn", None),
            ({"max_tokens": 3}, "max_tokens", None),
            ({"stop_sequences": ["xyz", "wor"]}, "stop_sequence", "wor"),
            ({"stop_sequences": ["</s>"]}, "stop_sequence", "</s>"),
        ]:
            told = (await ask(caller, **fields)).json()
            assert (told["stop_reason"], told["stop_sequence"]) == (reason, sequence)
            name, data = sse((await ask(caller, stream=True, **fields)).text)[-2]
            assert (name, data["delta"]) == ("message_delta", {"stop_reason": reason, "stop_sequence": sequence})
        caller.engine.text = ANSWERS["call"].encode()
        cut = (await ask(caller, tools=TOOLS, max_tokens=len(ANSWERS["call"].partition("울")[0].encode()))).json()
        assert cut["stop_reason"] == "max_tokens"
        assert cut["content"][0]["input"] == {"INVALID_JSON": '{"city": "서'}


@pytest.mark.parametrize("arguments", ['{"city": "\\ud800"}', '{"city": NaN}', '{"city": Seoul}'])
async def test_arguments_that_are_no_json_are_kept_as_text(arguments: str) -> None:
    async with calling() as caller:
        caller.engine.limits = ROOMY
        caller.engine.text = f'<tool_call>{{"name": "get_weather", "arguments": {arguments}}}</tool_call>'.encode()
        response = await ask(caller, tools=TOOLS)
        assert response.status_code == 200
        [kept] = response.json()["content"][0]["input"].items()
        assert kept[0] == "INVALID_JSON"
        assert kept[1].startswith(arguments)


async def test_earlier_turns_are_those_of_a_chat() -> None:
    use = {"type": "tool_use", "name": "get_weather", "input": {"city": "서울"}, "caller": {"type": "direct"}}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Well", "cache_control": {"type": "ephemeral"}}] * 2},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "Wait.", "citations": None},
                {"id": "c1", **use},
                {"id": "c2", **use},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "rain"},
                {
                    "type": "tool_result",
                    "tool_use_id": "c2",
                    "content": [{"type": "text", "text": "no"}],
                    "is_error": True,
                },
                {"type": "tool_result", "tool_use_id": "c3"},
                {"type": "text", "text": "And?"},
            ],
        },
        {"role": "assistant", "content": [{"id": "c4", **use}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c4", "content": "sun"}]},
    ]
    function = {"type": "function", "function": {"name": "get_weather", "arguments": SEOUL}}
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "WellWell"},
        {
            "role": "assistant",
            "reasoning_content": "hm",
            "content": "Wait.",
            "tool_calls": [{"id": "c1", **function}, {"id": "c2", **function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "Error: no"},
        {"role": "tool", "tool_call_id": "c3", "content": ""},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c4", **function}]},
        {"role": "tool", "tool_call_id": "c4", "content": "sun"},
    ]
    async with calling() as caller:
        caller.engine.limits = replace(LIMITS, max_context=2048)
        for system in ("Be brief.", [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]):
            assert (await ask(caller, messages=turns, system=system)).status_code == 200
        assert (await caller.chat(messages=chat)).status_code == 200
        prompts = [bytes(stream.prompt).decode() for stream in caller.engine.streams]
        assert prompts[0] == prompts[1] == prompts[2]


async def test_a_last_turn_of_the_assistant_is_gone_on_with() -> None:
    async with calling() as caller:
        await ask(caller, messages=[*HI, {"role": "assistant", "content": "Hel"}], max_tokens=9)
        assert bytes(caller.engine.streams[-1].prompt) == b"user:hi|assistant:Hel"


@pytest.mark.parametrize("kind", ANSWERS)
async def test_an_answer_can_be_sent_back(kind: str) -> None:
    async with calling() as caller:
        caller.engine.limits, caller.engine.text = replace(LIMITS, max_context=4096), ANSWERS[kind].encode()
        content = (await ask(caller, tools=TOOLS)).json()["content"]
        again = await ask(caller, tools=TOOLS, messages=[*HI, {"role": "assistant", "content": content}, *HI])
        assert again.status_code == 200, again.text


async def test_the_engine_is_asked_as_by_a_chat() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"temperature": 0.5, "top_p": 0.5, "top_k": 3}, {"temperature": 0.5, "top_p": 0.5, "top_k": 3}),
        ({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, {"response_format": form}),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"thinking": {"type": "disabled"}}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"thinking": {"type": "adaptive"}}, {}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 9}},
            {"chat_template_kwargs": {"enable_thinking": True, "thinking_budget": 9}},
        ),
        ({"tools": TOOLS, "tool_choice": {"type": "any"}}, {"tools": CHAT_TOOLS, "tool_choice": "required"}),
        (
            {"tools": TOOLS, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
            {"tools": CHAT_TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "get_time"}},
            {"tools": CHAT_TOOLS, "tool_choice": NAMED},
        ),
        ({"tools": TOOLS, "tool_choice": {"type": "auto"}}, {"tools": CHAT_TOOLS}),
        ({"tools": TOOLS, "tool_choice": {"type": "none"}}, {}),
    ]
    for fields, chat in pairs:
        async with calling() as caller:
            caller.engine.limits = ROOMY
            response = await ask(caller, **fields)
            assert response.status_code == 200, response.text
            assert (await caller.chat(**{"max_tokens": 300} | chat)).status_code == 200
            ours, theirs = caller.engine.streams
            assert ours.prompt == theirs.prompt, fields
            assert replace(ours.params, seed=0) == replace(theirs.params, seed=0), fields
            same = (ours.grammar and ours.grammar.source) == (theirs.grammar and theirs.grammar.source)
            assert same, fields


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"max_tokens": None}, "max_tokens: is required"),
        ({"max_tokens": 2000}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, "messages"),
        ({"messages": [{"role": "user", "content": "unsuitable"}]}, "messages: do not suit"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0].type: is not supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": ""}]}]},
            "content[0].type: does not",
        ),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type: is not supported"),
        ({"tools": [TOOLS[0], *TOOLS]}, "tools[1].name: is the name of two"),
        ({"tools": [{"name": "f", "input_schema": {"type": "array"}, "strict": True}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"container": "c"}, "container: is not supported"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers: is not supported"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"colour": "red"}, "colour: unknown field"),
        ({"n": 2}, "n: does not belong here"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], word: str) -> None:
    async with calling() as caller:
        caller.engine.limits = ROOMY
        response = await ask(caller, **fields)
        assert response.status_code == 400
        told = response.json()
        assert told.keys() == {"type", "error"}
        assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
        assert word in told["error"]["message"]
        assert caller.engine.streams == []


async def test_what_the_template_does_not_read_is_named_in_the_clients_words() -> None:
    class Plain(FakeTemplate):
        variables = frozenset()

    async with calling(Plain()) as caller:
        answer = await ask(
            caller, thinking={"type": "enabled", "budget_tokens": 9}, output_config={"effort": "low"}, speed="standard"
        )
        assert answer.headers["x-headlight-ignored"] == ("output_config.effort, thinking.type, thinking.budget_tokens")


async def test_errors_have_anthropics_form_wherever_they_come_from() -> None:
    async with (
        serving(api_keys="one") as server,
        AsyncAnthropic(base_url=server.url, api_key="one", max_retries=0, timeout=10) as client,
        AsyncAnthropic(base_url=server.url, auth_token="one", max_retries=0, timeout=10) as bearer,
        AsyncAnthropic(base_url=server.url, api_key="two", max_retries=0, timeout=10) as stranger,
    ):
        asked: dict[str, Any] = {"model": MODEL, "messages": HI, "max_tokens": 5}
        assert await client.messages.create(**asked)
        assert await bearer.messages.create(**asked)
        for refused, error, kind in [
            (stranger.messages.create(**asked), anthropic.AuthenticationError, "authentication_error"),
            (client.messages.create(**asked | {"model": "x"}), anthropic.NotFoundError, "not_found_error"),
            (client.post("/v1/messages/batches", cast_to=object), anthropic.NotFoundError, "not_found_error"),
            (client.get("/v1/messages", cast_to=object), anthropic.APIStatusError, "invalid_request_error"),
            (
                client.messages.create(**asked | {"system": "x" * 70000}),
                anthropic.RequestTooLargeError,
                "request_too_large",
            ),
        ]:
            with pytest.raises(error) as told:
                await refused
            assert told.value.body["error"]["type"] == kind  # type: ignore[index]
        server.admission.drain()
        with pytest.raises(anthropic.APIStatusError) as told:
            await client.messages.create(**asked)
        assert (told.value.status_code, told.value.body["error"]["type"]) == (503, "overloaded_error")  # type: ignore[index]


async def test_a_key_in_its_own_header_opens_every_route() -> None:
    async with calling(api_keys="one") as caller:
        for headers, status in [({"x-api-key": "one"}, 200), ({"x-api-key": "two"}, 401), ({}, 401)]:
            assert (await caller.http.get("/v1/models", headers=headers)).status_code == status
        both = {"authorization": "Bearer two", "x-api-key": "one"}
        assert (await caller.http.get("/v1/models", headers=both)).status_code == 401


async def test_an_answer_that_breaks_off_says_so() -> None:
    async with (
        serving() as server,
        AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0, timeout=10) as client,
    ):
        server.engine.scripted = [Delta(0, [104], None), Delta(0, [], None, "error", error="out of luck")]
        asked: dict[str, Any] = {"model": MODEL, "messages": HI, "max_tokens": 5}
        with pytest.raises(anthropic.APIStatusError, match="out of luck"):
            [event async for event in await client.messages.create(**asked, stream=True)]
        with pytest.raises(anthropic.InternalServerError, match="out of luck"):
            await client.messages.create(**asked)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_grammar_that_is_refused_has_the_clients_name(stream: bool) -> None:
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    async with calling() as caller:
        assert (await ask(caller, output_config=config, max_tokens=50)).status_code == 200
        grammar = caller.engine.streams[-1].grammar
        assert grammar is not None
        refusal = Refusal("invalid_grammar", "is too complex", 0, grammar.field)
        caller.engine.scripted = [Delta(0, [], None, "refused", refusal=refusal)]
        response = await ask(caller, output_config=config, max_tokens=50, stream=stream)
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith("output_config.format.schema: ")


async def test_a_count_wants_no_engine_and_no_length() -> None:
    async with calling() as caller:
        body = {"messages": HI, "tools": TOOLS, "tool_choice": {"type": "none"}, "system": "x"}
        response = await caller.http.post("/v1/messages/count_tokens", json=body)
        assert response.json() == {"input_tokens": len("system:x|user:hi|assistant:")}
        response = await caller.http.post("/v1/messages/count_tokens", json={**body, "max_tokens": 3})
        assert (response.status_code, response.json()["type"]) == (400, "error")
        assert caller.engine.streams == []
