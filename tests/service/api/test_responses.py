"""OpenAI's responses: a translation of chats, streamed or whole, as the openai package reads it."""

import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from service.engine.messages import Delta, Refusal
from tests.service.api.fakes import HI, LIMITS, MODEL, THINK, FakeTemplate, calling, serving
from tests.service.api.test_tools import ANSWERS, SCHEMA, SEOUL, TIME, WEATHER

ROOMY = replace(LIMITS, max_context=1024)
TOOLS = [{"type": "function", **tool["function"]} for tool in (WEATHER, TIME)]
TEXT_EVENTS = ["output_item.added", "content_part.added", "TEXT.delta", "TEXT.done", "content_part.done"]
EVENTS = {
    "text": [event.replace("TEXT", "output_text") for event in [*TEXT_EVENTS, "output_item.done"]],
    "reasoning": [event.replace("TEXT", "reasoning_text") for event in [*TEXT_EVENTS, "output_item.done"]],
    "call": [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ],
}
KINDS = {
    "text": ["text"],
    "call": ["call"],
    "parallel": ["text", "call", "call", "call"],
    "reasoning": ["reasoning", "text", "call"],
    "thoughts": ["reasoning", "text"],
    "unknown": ["text"],
    "broken": ["call", "text"],
}


def bare(value: Any) -> Any:
    """Plain data without ids, times and what the openai package adds."""
    match value:
        case dict():
            left_out = ("id", "call_id", "created_at", "completed_at", "parsed", "parsed_arguments")
            return {name: bare(item) for name, item in value.items() if name not in left_out and item is not None}
        case list():
            return [bare(item) for item in value]
    return value


def sse(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The names and objects of a stream's events."""
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


async def ask(caller: Any, **fields: Any) -> httpx.Response:
    return await caller.http.post("/v1/responses", json={"input": "hi"} | fields)


@pytest.mark.parametrize("limit", [None, 45, 90])
@pytest.mark.parametrize("kind", ANSWERS)
async def test_a_stream_is_the_whole_response(kind: str, limit: int | None) -> None:
    async with (
        serving() as server,
        AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as client,
    ):
        server.engine.limits, server.engine.text = ROOMY, ANSWERS[kind].encode()
        asked: dict[str, Any] = {"model": MODEL, "input": "hi", "tools": TOOLS, "max_output_tokens": limit}
        whole = await client.responses.create(**asked)
        async for event in await client.responses.create(**asked, stream=True):
            last = event
        assert last.type == f"response.{whole.status}"
        assert bare(last.response.to_dict()) == bare(whole.to_dict())
        async with client.responses.stream(**asked) as stream:
            rebuilt = [event async for event in stream][-1].response
        assert bare(rebuilt.to_dict()) == bare(whole.to_dict())
        cut = limit is not None and len(ANSWERS[kind].encode()) >= limit
        assert whole.status == ("incomplete" if cut else "completed")
        assert (whole.incomplete_details is not None) == cut
        assert (whole.output[-1].status == "incomplete") == cut
        assert {item.status for item in whole.output[:-1]} <= {"completed"}


@pytest.mark.parametrize("kind", ANSWERS)
async def test_events_come_in_the_published_order(kind: str) -> None:
    async with calling() as caller:
        caller.engine.limits, caller.engine.text = ROOMY, ANSWERS[kind].encode()
        events = sse((await ask(caller, tools=TOOLS, stream=True)).text)
    assert [data["sequence_number"] for _, data in events] == [*range(len(events))]
    assert all(name == data["type"] for name, data in events)
    names = [name.removeprefix("response.") for name, _ in events]
    unlike = [name for before, name in zip(["", *names], names, strict=False) if name != before]
    items = [EVENTS[one] for one in KINDS[kind]]
    assert unlike == ["created", "in_progress", *[name for item in items for name in item], "completed"]
    for name, data in events:
        if "item_id" in data:
            item = events[-1][1]["response"]["output"][data["output_index"]]
            assert item["id"] == data["item_id"], name


async def told(**fields: Any) -> str:
    """The prompt that a request makes."""
    async with calling() as caller:
        caller.engine.limits = ROOMY
        response = await ask(caller, **fields)
        assert response.status_code == 200, response.text
        return bytes(caller.engine.streams[-1].prompt).decode()


async def test_earlier_turns_are_those_of_a_chat() -> None:
    assert await told(instructions="Be brief.") == "system:Be brief.|user:hi|assistant:"
    call = {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": SEOUL}
    items = [
        {"role": "developer", "content": "Rules."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And"}] * 2},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Wait.", "annotations": []}], "phase": None},
        call,
        {**call, "call_id": "c2", "id": "fc", "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}], "encrypted_content": None},
        {"role": "assistant", "content": "Mixed."},
        {"role": "assistant", "content": "Really."},
        {"role": "user", "content": "why"},
    ]
    async with calling() as caller:
        caller.engine.limits = ROOMY
        assert (await ask(caller, input=items)).status_code == 200
        function = {"type": "function", "function": {"name": "get_weather", "arguments": SEOUL}}
        chat = [
            {"role": "developer", "content": "Rules."},
            {"role": "user", "content": "AndAnd"},
            {
                "role": "assistant",
                "reasoning_content": "hm",
                "content": "Wait.",
                "tool_calls": [{"id": "c1", **function}, {"id": "c2", **function}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
            {"role": "tool", "tool_call_id": "c2", "content": "sun"},
            {"role": "assistant", "reasoning_content": "so", "content": "Mixed."},
            {"role": "assistant", "content": "Really."},
            {"role": "user", "content": "why"},
        ]
        assert (await caller.chat(messages=chat)).status_code == 200
        assert caller.engine.streams[0].prompt == caller.engine.streams[1].prompt


@pytest.mark.parametrize("kind", ANSWERS)
async def test_an_answer_can_be_sent_back(kind: str) -> None:
    """With every field that it came with."""
    async with calling() as caller:
        caller.engine.limits, caller.engine.text = replace(LIMITS, max_context=4096), ANSWERS[kind].encode()
        output = (await ask(caller, tools=TOOLS, include=["message.output_text.logprobs"])).json()["output"]
        again = await ask(caller, tools=TOOLS, input=[{"role": "user", "content": "hi"}, *output])
        assert again.status_code == 200, again.text


async def test_the_engine_is_asked_as_by_a_chat() -> None:
    schema = {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"max_output_tokens": 7}, {"max_tokens": 7}),
        ({"temperature": 0.5, "top_p": 0.5, "top_k": 3}, {"temperature": 0.5, "top_p": 0.5, "top_k": 3}),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
        (
            {"text": {"format": schema}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        ),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        ({"tools": TOOLS, "tool_choice": "required"}, {"tools": [WEATHER, TIME], "tool_choice": "required"}),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "name": "get_time"}},
            {"tools": [WEATHER, TIME], "tool_choice": {"type": "function", "function": {"name": "get_time"}}},
        ),
        ({"tools": TOOLS, "tool_choice": "none"}, {}),
        ({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
    ]
    for fields, chat in pairs:
        async with calling() as caller:
            caller.engine.limits = ROOMY
            response = await ask(caller, seed=1, **fields)
            assert response.status_code == 200, response.text
            assert (await caller.chat(seed=1, **chat)).status_code == 200
            ours, theirs = caller.engine.streams
            assert (ours.prompt, ours.params) == (theirs.prompt, theirs.params), fields
            same = (ours.grammar and ours.grammar.source) == (theirs.grammar and theirs.grammar.source)
            assert same, fields


async def test_log_probabilities_are_those_of_the_text() -> None:
    async with calling(FakeTemplate(reasoning=THINK)) as caller:
        caller.engine.limits, caller.engine.text = ROOMY, "<think>hm</think>Né".encode()
        [_, message] = (await ask(caller, top_logprobs=1)).json()["output"]
        entries = message["content"][0]["logprobs"]
        assert b"".join(bytes(entry["bytes"]) for entry in entries).decode().endswith("Né")
        caller.engine.text = "Né".encode()
        [message] = (await ask(caller, top_logprobs=1)).json()["output"]
        entries = message["content"][0]["logprobs"]
        assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == "Né"
        streamed = sse((await ask(caller, top_logprobs=1, stream=True)).text)
        deltas = [data["logprobs"] for name, data in streamed if name == "response.output_text.delta"]
        assert [entry for delta in deltas for entry in delta] == entries
        # What was held back comes with the end token, which belongs to no text.
        caller.engine.text = b"N\xc3"
        [message] = (await ask(caller, top_logprobs=1)).json()["output"]
        assert message["content"][0]["text"] == "N\ufffd"
        assert [entry["bytes"] for entry in message["content"][0]["logprobs"]] == [[78], [0xC3]]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
        ({"max_tool_calls": 3}, "max_tool_calls", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [*TOOLS, {"type": "mcp", "server_label": "x"}]}, "tools[2].type", "unsupported_parameter"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "unsupported_parameter"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "f"}}, "tool_choice", None),
        ({"tools": TOOLS * 2}, "tools[2].name", None),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "unsupported_parameter"),
        ({"input": [{"type": []}]}, "input[0].type", "unsupported_parameter"),
        ({"input": ["hi"]}, "input[0]", None),
        ({"input": []}, "input", None),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
            "unsupported_parameter",
        ),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input[0].encrypted_content", None),
        ({"include": ["file_search_call.results"]}, "include[0]", None),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", None),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", None),
        ({"max_output_tokens": 2000}, "max_output_tokens", "context_length_exceeded"),
        ({"input": "x" * 2000}, "input", "context_length_exceeded"),
        ({"input": [{"role": "user", "content": "unsuitable"}]}, "input", None),
        ({"max_tokens": 3}, "max_tokens", "unsupported_parameter"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode", None),
        ({"top_logprobs": 1000}, "top_logprobs", None),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"input": [{**HI[0], "colour": "red"}]}, "input[0].colour", "unknown_parameter"),
    ],
)
async def test_what_would_change_the_answer_is_refused_by_name(
    fields: dict[str, Any], param: str, code: str | None
) -> None:
    async with calling() as caller:
        caller.engine.limits = ROOMY
        response = await ask(caller, **fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, param, code), error
        assert param in error["message"]
        assert caller.engine.streams == []


async def test_what_asks_for_nothing_is_taken_and_hints_are_named() -> None:
    idle = {"background": False, "truncation": "disabled", "store": False, "tools": [], "metadata": {"a": "b"}}
    idle |= {"previous_response_id": None, "stream_options": {"include_obfuscation": False}, "include": []}
    hints = {"store": True, "text": {"verbosity": "low"}, "reasoning": {"summary": "auto", "effort": "low"}}
    async with calling(FakeTemplate(reasoning=None)) as caller:
        answer = await ask(caller, **idle)
        assert "x-headlight-ignored" not in answer.headers
        assert (answer.json()["metadata"], answer.json()["store"]) == ({"a": "b"}, False)
        answer = await ask(caller, **hints, include=["reasoning.encrypted_content"])
        assert answer.headers["x-headlight-ignored"] == "store, reasoning.summary, text.verbosity, include"


async def test_what_the_template_does_not_read_is_named_in_the_clients_words() -> None:
    class Plain(FakeTemplate):
        variables = frozenset()

    async with calling(Plain()) as caller:
        answer = await ask(caller, reasoning={"effort": "low"})
        assert answer.headers["x-headlight-ignored"] == "reasoning.effort"


@pytest.mark.parametrize(
    "request_", [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")], ids=lambda r: r[0] + r[1]
)
async def test_stored_responses_are_not_there(request_: tuple[str, str]) -> None:
    method, rest = request_
    async with calling() as caller:
        response = await caller.http.request(method, f"/v1/responses/resp_1{rest}")
        assert response.status_code == 404
        assert "does not store" in response.json()["error"]["message"]


async def test_an_answer_that_breaks_off_says_so() -> None:
    async with (
        serving() as server,
        AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as client,
    ):
        server.engine.scripted = [Delta(0, [104], None), Delta(0, [], None, "error", error="out of luck")]
        events = [event async for event in await client.responses.create(model=MODEL, input="hi", stream=True)]
        assert [event.sequence_number for event in events] == [*range(len(events))]
        assert (events[-1].type, events[-1].code) == ("error", "engine_error")
        with pytest.raises(openai.InternalServerError, match="out of luck"):
            await client.responses.create(model=MODEL, input="hi")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_grammar_that_is_refused_has_the_clients_name(stream: bool) -> None:
    async with calling() as caller:
        schema = {"type": "json_schema", "name": "x", "schema": SCHEMA}
        assert (await ask(caller, text={"format": schema})).status_code == 200
        grammar = caller.engine.streams[-1].grammar
        assert grammar is not None
        refusal = Refusal("invalid_grammar", "is too complex", 0, grammar.field)
        caller.engine.scripted = [Delta(0, [], None, "refused", refusal=refusal)]
        response = await ask(caller, text={"format": schema}, stream=stream)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "text.format.schema")
