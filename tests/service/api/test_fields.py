"""What each field of a request does: what arrives at the engine, what comes back, what is refused."""

import asyncio
import functools
import json
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
from openai.types import chat, completion_create_params
from openai.types.shared_params import FunctionDefinition
from pydantic import ValidationError

from model.checkpoint.sampling_defaults import SamplingDefaults
from service.api.errors import explain
from service.api.schemas.idle import UNSUPPORTED
from service.api.schemas.requests import (
    Body,
    CacheControl,
    CacheOptions,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    Function,
    Message,
    NamedTool,
    ResponseFormat,
    StreamOptions,
    StructuredOutputs,
    TemplateVariables,
    TextPart,
    TokenizeBody,
    Tool,
    ToolCall,
)
from service.engine.messages import Delta, Refusal
from service.settings import Settings
from tests.service.api.fakes import BOS, EOS, HI, Caller, FakeTemplate, FakeTokenizer, calling, events

SHARED: dict[str, Any] = {
    "n": 2,
    "max_tokens": 5,
    "min_tokens": 3,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 7,
    "min_p": 0.25,
    "typical_p": 0.5,
    "top_n_sigma": 1.5,
    "seed": 2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "repetition_penalty": 1.5,
    "logit_bias": {"7": -1.5},
    "use_beam_search": True,
    "length_penalty": 2,
    "early_stopping": True,
    "allowed_token_ids": [5, 9],
    "bad_words": ["no"],
    "stop": "wor",
    "stop_token_ids": [111],
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "stream": True,
    "stream_options": {"include_usage": True},
    "return_token_ids": True,
    "prompt_logprobs": 1,
    "inspect": {"residual": True},
    "cache_salt": "mine",
    "response_format": {"type": "json_object"},
    "structured_outputs": {"regex": "a*"},
}
CHAT = SHARED | {
    "messages": [{"role": "system", "content": "Be brief."}, *HI],
    "max_completion_tokens": 6,
    "logprobs": True,
    "top_logprobs": 2,
    "add_generation_prompt": False,
    "continue_final_message": True,
    "add_special_tokens": True,
}
COMPLETION = SHARED | {"prompt": [1, 2], "logprobs": 2, "echo": True, "add_special_tokens": False, "best_of": 2}
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "f"}}]
CHAT |= {"tools": TOOLS, "tool_choice": "none", "parallel_tool_calls": False, "separate_reasoning": False}
CHAT |= {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}}
LABELS = {
    "model": "toy",
    "user": "somebody",
    "safety_identifier": "u-1",
    "prompt_cache_key": "k",
    "session_id": "s",
    "metadata": {"run": "7"},
    "store": True,
    "service_tier": "flex",
    "verbosity": "low",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
}
"""Fields that are meant to change nothing."""
NEEDED: dict[str, dict[str, Any]] = {
    "length_penalty": {"use_beam_search": True},
    "early_stopping": {"use_beam_search": True},
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
    "include_stop_str_in_output": {"stop": "wor"},
    "skip_special_tokens": {"include_stop_str_in_output": True},
    "continue_final_message": {"messages": [{"role": "assistant", "content": "I"}]},
    "tool_choice": {"tools": TOOLS},
    "parallel_tool_calls": {"tools": TOOLS},
}
"""What has to be set beside a field for it to have an effect."""
SAID: dict[str, bytes] = {
    "tool_choice": b'<tool_call>{"name": "f"}</tool_call>',
    "parallel_tool_calls": b'<tool_call>{"name": "f"}</tool_call>' * 2,
    "separate_reasoning": b"<think>hm</think>Hello",
}
"""What the engine has to say for a field to have an effect."""


async def outcome(caller: Caller, route: str, fields: dict[str, Any]) -> tuple[Any, ...]:
    """All that a request leads to, in the engine and for the client, but for ids and times."""
    before = len(caller.engine.streams)
    response = await caller.http.post(route, json={"seed": 1} | fields)
    assert response.status_code == 200, response.text
    streams = [(s.prompt, s.params, s.cache_salt, s.grammar) for s in caller.engine.streams[before:]]
    whole = re.sub("call_[0-9a-f]{24}", "call", response.text)
    answers = events(response)[:-1] if fields.get("stream") else [json.loads(whole)]
    return streams, [answer | {"id": "", "created": 0} for answer in answers]


@pytest.mark.parametrize(
    ("route", "body", "needed", "table"),
    [
        ("/v1/completions", CompletionBody, {"prompt": "hi"}, COMPLETION),
        ("/v1/chat/completions", ChatBody, {"messages": HI}, CHAT),
    ],
)
async def test_no_field_is_accepted_and_ignored(route: str, body: Any, needed: Any, table: dict[str, Any]) -> None:
    assert set(table) | set(LABELS) == set(body.model_fields)
    async with calling() as caller:
        text = caller.engine.text
        for name, value in table.items():
            caller.engine.text = SAID.get(name, text)
            base = needed | NEEDED.get(name, {})
            without = await outcome(caller, route, base)
            assert await outcome(caller, route, base) == without
            assert await outcome(caller, route, base | {name: value}) != without, name
            if name not in needed and name != "seed":
                assert await outcome(caller, route, base | {name: None}) == without, name
        assert await outcome(caller, route, needed | LABELS) == await outcome(caller, route, needed)


@pytest.mark.parametrize(
    ("field", "value", "arrives"),
    [
        ("temperature", 0.7, 0.7),
        ("temperature", 0, 0.0),
        ("temperature", 1e-300, 0.0),
        ("top_p", 1, 1.0),
        ("top_k", -1, 0),
        ("top_k", 2**31 - 1, 0),
        ("top_k", 9, 9),
        ("top_n_sigma", -1, 0.0),
        ("top_n_sigma", 2, 2.0),
        ("min_p", 0.1, 0.1),
        ("seed", 2**63 - 1, 2**63 - 1),
        ("seed", -1, 2**63 - 1),
        ("presence_penalty", -2, -2.0),
        ("frequency_penalty", 2, 2.0),
        ("repetition_penalty", 1.1, 1.1),
        ("logit_bias", {"5": 100, "0": -100}, ((5, 100.0), (0, -100.0))),
        ("stop_token_ids", [3, EOS, 3], (EOS, 3)),
        ("stop", ["x", "<s>"], (EOS,)),
        ("ignore_eos", True, ()),
        ("ignore_eos", False, (EOS,)),
        ("max_tokens", 9, 9),
        ("min_tokens", 2, 2),
    ],
)
async def test_values_arrive_in_the_engine(field: str, value: Any, arrives: Any) -> None:
    async with calling() as caller:
        assert (await caller.complete(**{field: value})).status_code == 200
        name = "stop_token_ids" if field in ("ignore_eos", "stop") else field
        assert getattr(caller.engine.params, name) == arrives


async def test_defaults_are_those_of_openai() -> None:
    async with calling() as caller:
        await caller.complete()
        first = caller.engine.params
        assert (first.max_tokens, first.temperature, first.top_p, first.logprobs) == (16, 1.0, 1.0, None)
        await caller.complete()
        assert caller.engine.params.seed != first.seed
        await caller.chat()
        assert caller.engine.params.max_tokens == 256 - len("user:hi|assistant:")
        await caller.complete(prompt="x" * 250)
        assert caller.engine.params.max_tokens == 256 - 251


async def test_what_the_makers_recommend_holds_where_a_request_does_not_say() -> None:
    recommended = {"temperature": 0.5, "top_k": 7, "top_p": 0.5, "min_p": 0.25, "repetition_penalty": 1.5}
    assert {field.name for field in fields(SamplingDefaults)} == {*recommended, "not_applied"}
    async with calling(sampling=SamplingDefaults(**recommended)) as caller:  # type: ignore[arg-type]
        for ask in (caller.complete, caller.chat):
            await ask()
            assert {name: getattr(caller.engine.params, name) for name in recommended} == recommended
            for name in recommended:
                await ask(**{name: 1})
                others = recommended | {name: 1}
                assert {name: getattr(caller.engine.params, name) for name in recommended} == others


@pytest.mark.parametrize(
    ("prompt", "arrives"),
    [
        ("hi</s>", [[BOS, 104, 105, EOS]]),
        (["hi", "o"], [[BOS, 104, 105], [BOS, 111]]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
async def test_each_kind_of_prompt(prompt: Any, arrives: list[list[int]]) -> None:
    async with calling() as caller:
        response = await caller.complete(prompt=prompt)
        assert [stream.prompt for stream in caller.engine.streams] == arrives
        assert response.json()["usage"]["prompt_tokens"] == sum(map(len, arrives))


async def test_messages_go_through_the_template() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b</s>"}]
    messages = [
        {"role": "developer", "content": "brief"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "go"},
    ]
    async with calling() as caller:
        assert (await caller.chat(messages=messages)).status_code == 200
        assert bytes(caller.engine.streams[0].prompt) == b"system:brief|user:ab</s>|assistant:yes|user:go|assistant:"


async def test_choices_of_a_seeded_request_differ_and_repeat() -> None:
    async with calling() as caller:
        await caller.complete(n=3, seed=5)
        seeds = [stream.params.seed for stream in caller.engine.streams]
        assert seeds[0] == 5
        assert len(set(seeds)) == 3
        await caller.complete(n=3, seed=6)
        assert not set(seeds) & {stream.params.seed for stream in caller.engine.streams[3:]}
        await caller.complete(prompt=["a", "b"], n=2, seed=5)
        assert [stream.params.seed for stream in caller.engine.streams[6:]] == seeds[:2] * 2


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize(
    ("asked", "kind", "source"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type":"object"}'),
        ({"response_format": schema_format({"b": 1, "a": "é"})}, "json_schema", '{"b":1,"a":"é"}'),
        ({"response_format": schema_format(True)}, "json_schema", "true"),
        ({"response_format": schema_format(None)}, "json_schema", "true"),
        ({"structured_outputs": {"json": None, "regex": "a"}}, "regex", "a"),
        ({"structured_outputs": {"json": {"type": "null"}}}, "json_schema", '{"type":"null"}'),
        ({"structured_outputs": {"json": '{ "type": "null" }'}}, "json_schema", '{ "type": "null" }'),
        ({"structured_outputs": {"json_object": True, "regex": None}}, "json_schema", '{"type":"object"}'),
        ({"structured_outputs": {"regex": "a|b"}}, "regex", "a|b"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", '["a","b"]'),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "grammar", 'root ::= "a"'),
    ],
)
async def test_each_form_of_a_grammar_arrives_in_the_engine(asked: dict[str, Any], kind: str, source: str) -> None:
    async with calling(FakeTemplate(reasoning=None)) as caller:
        for ask in (caller.complete, caller.chat):
            assert (await ask(**asked)).status_code == 200
            grammar = caller.engine.streams[-1].grammar
            assert grammar is not None
            assert (grammar.kind, grammar.source) == (kind, source)


async def test_text_is_no_grammar() -> None:
    async with calling() as caller:
        assert (await caller.chat(response_format={"type": "text"})).status_code == 200
        assert caller.engine.streams[-1].grammar is None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_grammar_that_the_engine_refuses_is_the_requests_fault(stream: bool) -> None:
    async with calling() as caller:
        refusal = Refusal("invalid_grammar", "no text fits it", 0.0, "structured_outputs.regex")
        caller.engine.failure = Delta(0, [], None, "refused", refusal=refusal)
        response = await caller.chat(structured_outputs={"regex": "a"}, stream=stream)
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], error["code"]) == ("structured_outputs.regex", "invalid_grammar")
        assert "no text fits it" in error["message"]


REFUSED_ANYWHERE: list[tuple[dict[str, Any], str | None]] = [
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 2**31}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 1.1}, "min_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 2**63}, "max_tokens"),
    ({"max_tokens": 10**400}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 255}, "max_tokens"),
    ({"min_tokens": 17, "max_tokens": 16}, "min_tokens"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"n": 10**9}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"260": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"07": 1}}, "logit_bias"),
    ({"logit_bias": {"\u0663": 1}}, "logit_bias"),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logit_bias": {str(i): 1 for i in range(201)}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": "a" * 257}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"stop": 1}, "stop"),
    ({"stop_token_ids": [260]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stop_token_ids": [10**400]}, "stop_token_ids"),
    ({"stop_token_ids": list(range(129))}, "stop_token_ids"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [260]}, "allowed_token_ids"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
    ({"allowed_token_ids": ["a"]}, "allowed_token_ids[0]"),
    ({"bad_words": "a"}, "bad_words"),
    ({"length_penalty": 2}, "length_penalty"),
    ({"early_stopping": "never"}, "early_stopping"),
    *(
        ({"use_beam_search": True, name: value}, name)
        for name, value in {
            "stream": True,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "typical_p": 0.9,
            "top_n_sigma": 1,
            "presence_penalty": 1,
            "frequency_penalty": 1,
            "repetition_penalty": 1.1,
            "logit_bias": {"5": 1},
            "allowed_token_ids": [5],
            "bad_words": ["a"],
            "min_tokens": 1,
            "stop": "a",
            "prompt_logprobs": 1,
            "inspect": {"lens": 1},
            "n": 65,
            "length_penalty": 11,
            "early_stopping": "always",
        }.items()
    ),
    ({"use_beam_search": True, "early_stopping": 1}, "early_stopping"),
    ({"use_beam_search": True, "response_format": {"type": "json_object"}}, "response_format"),
    ({"use_beam_search": 1}, "use_beam_search"),
    ({"top_n_sigma": -2}, "top_n_sigma"),
    ({"top_n_sigma": 101}, "top_n_sigma"),
    ({"top_n_sigma": "1"}, "top_n_sigma"),
    ({"bad_words": [1]}, "bad_words[0]"),
    ({"bad_words": ["a", " "]}, "bad_words"),
    ({"bad_words": ["a" * 257]}, "bad_words"),
    ({"bad_words": ["a"] * 129}, "bad_words"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "text", "json_schema": {"name": "x"}}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
    ({"response_format": schema_format("{}")}, "response_format.json_schema.schema"),
    ({"response_format": schema_format({"title": "x" * 99})}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
    ({"response_format": {"type": "json_object"}, "min_tokens": 1}, "min_tokens"),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
    ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a" * 100}}, "structured_outputs.regex"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice[1]"),
    ({"structured_outputs": {"choice": ["a" * 50, "b" * 50]}}, "structured_outputs.choice"),
    ({"structured_outputs": {"json": 1}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": "1" * 100}}, "structured_outputs.json"),
    ({"structured_outputs": {"grammar": 1}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ({"guided_json": {}}, "guided_json"),
    ({"guided_regex": "a"}, "guided_regex"),
    ({"guided_choice": ["a"]}, "guided_choice"),
    ({"guided_grammar": "a"}, "guided_grammar"),
    ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
    ({"stream": True, "stream_options": {"colour": 1}}, "stream_options.colour"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"cache_salt": "s" * 257}, "cache_salt"),
    ({"user": "u" * 513}, "user"),
    ({"safety_identifier": 1}, "safety_identifier"),
    ({"prompt_cache_key": "k" * 513}, "prompt_cache_key"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
    ({"metadata": {"run": "x" * 513}}, "metadata.run"),
    ({"metadata": "run"}, "metadata"),
    ({"store": 1}, "store"),
    ({"service_tier": "t" * 65}, "service_tier"),
    ({"verbosity": "loud"}, "verbosity"),
    ({"colour": None}, "colour"),
    ({f"x{i}": 1 for i in range(256)}, None),
    ({"stream": True, "stream_options": {f"x{i}": 1 for i in range(257)}}, "stream_options"),
    ({"n": 8, "max_tokens": 200}, "max_tokens"),
]
REFUSED_COMPLETIONS: list[tuple[dict[str, Any], str | None]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [[1], []]}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt[1]"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": [1, True]}, "prompt[1]"),
    ({"prompt": [260]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**400]}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": 1}, "prompt"),
    ({"prompt": "x" * 255}, "prompt"),
    ({"prompt": ["a"] * 6}, "prompt"),
    ({"prompt": ["a"] * 3, "n": 3}, "n"),
    ({"prompt": "", "add_special_tokens": False}, "prompt"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1, "echo": True}, "max_tokens"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"messages": HI}, "messages"),
    ({"best_of": 0}, "best_of"),
    ({"use_beam_search": True, "echo": True, "max_tokens": 0}, "echo"),
    ({"use_beam_search": True, "echo": True, "logprobs": 0}, "echo"),
    ({"use_beam_search": True, "best_of": 2, "n": 3}, "best_of"),
    ({"best_of": 1, "n": 2}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"best_of": 65}, "best_of"),
    ({"best_of": 3, "prompt": ["a"] * 3}, "best_of"),
    ({"best_of": 4, "max_tokens": 251, "prompt": [1]}, "max_tokens"),
    ({"suffix": "x"}, "suffix"),
]
CALLED: dict[str, Any] = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
NESTED = {"name": "f", "parameters": functools.reduce(lambda inner, _: {"x": [inner]}, range(40), dict[str, Any]())}
REFUSED_CHATS: list[tuple[dict[str, Any], str | None]] = [
    ({"best_of": 2}, "best_of"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "critic", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].name"),
    ({"messages": [{"role": "tool", "tool_call_id": "a"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "tool_call_id": "a"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALLED]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "user", "content": "x", "reasoning_content": "x"}]}, "messages[0].reasoning_content"),
    ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "tool_calls": [CALLED] * 129}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "messages[0].tool_calls[0].function"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "type": "custom", "custom": {}}]}]},
        "messages[0].tool_calls[0].type",
    ),
    (
        {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]},
        "messages[0].function_call",
    ),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
        "messages[0].content[0].image_url",
    ),
    ({"messages": [{"role": "user", "content": "x", "name": ""}]}, "messages[0].name"),
    ({"messages": [{"role": "user", "content": "x", "name": "n" * 257}]}, "messages[0].name"),
    ({"messages": [{"role": "user", "content": "x", "id": 1}]}, "messages[0].id"),
    ({"messages": [{"role": "user", "content": "x", "cache_control": "yes"}]}, "messages[0].cache_control"),
    ({"messages": [{"role": "assistant", "content": "x", "refusal": "no"}]}, "messages[0].refusal"),
    ({"messages": [{"role": "user", "content": "x", "mood": "good"}]}, "messages[0].mood"),
    ({"messages": HI * 6}, "messages"),
    ({"messages": [{"role": "user", "content": "unsuitable"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 250}]}, "prompt"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 1}, "logprobs"),
    ({"max_completion_tokens": 250}, "max_tokens"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
    ({"prompt": "hi"}, "prompt"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]}, "tools[0].function.strict"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "array"}}}]},
        "tools[0].function.parameters",
    ),
    ({"tools": TOOLS, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
    ({"tools": TOOLS, "structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"tools": TOOLS, "tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
    ({"tools": TOOLS, "separate_reasoning": False}, "separate_reasoning"),
    ({"tools": [{"type": "function", "function": {"name": "f", "mood": 1}}]}, "tools[0].function.mood"),
    ({"tools": [{"type": "function", "function": NESTED}]}, "tools[0].function.parameters"),
    ({"tools": TOOLS * 2}, "tools[1].function.name"),
    ({"tools": TOOLS * 129}, "tools"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": ["auto"]}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.type"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"chat_template": "{{ x }}"}, "chat_template"),
    ({"chat_template_kwargs": {"enable_thinking": "yes"}}, "chat_template_kwargs.enable_thinking"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"add_generation_prompt": True}}, "chat_template_kwargs.add_generation_prompt"),
    ({"chat_template_kwargs": {"tools": [1]}}, "chat_template_kwargs.tools"),
    ({"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs.bos_token"),
    (
        {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
        "chat_template_kwargs.reasoning_effort",
    ),
    ({"reasoning_effort": "x" * 33}, "reasoning_effort"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"include_reasoning": False}, "include_reasoning"),
]


@pytest.mark.parametrize(
    ("route", "cases"),
    [
        ("completions", REFUSED_ANYWHERE + REFUSED_COMPLETIONS),
        ("chat/completions", REFUSED_ANYWHERE + REFUSED_CHATS),
    ],
)
async def test_what_does_not_fit_is_refused_by_name(route: str, cases: list[tuple[dict[str, Any], str | None]]) -> None:
    needed = {"prompt": "hi"} if route == "completions" else {"messages": HI}
    limits = {"max_prompts": 5, "max_messages": 5, "max_request_tokens": 1000, "max_logit_bias": 200, "max_grammar": 99}
    async with calling(**limits) as caller:
        for fields, param in cases:
            response = await caller.http.post(f"/v1/{route}", json=needed | fields)
            assert response.status_code == 400, (fields, response.text)
            error = response.json()["error"]
            assert error["param"] == param, (fields, error)
            assert error["message"]
            assert error["type"] == "invalid_request_error"
        assert caller.engine.streams == []


WRONG = [
    *("", "x", "x" * 2000, True, 1.5, -1, -3, 0, 300, -(2**70), 2**70, 10**400, 1e300, -1e300),
    *([], [[]], ["x"], [1.5], [-1, "x"], [[1.5]], [{}], [{"type": "text"}], [{"role": 1}], [{"role": "user"}]),
    *({}, {"x": 1}, {"5": "x"}, {"5": 1e9}, {"5": -1e9}, {str(key): 1 for key in range(400)}),
    {str(key): "x" for key in range(99)},
]
PYDANTICS = re.compile(
    r"\b(input|valid|instance|String|List|Dictionary|Value|Field|items?|dict|int|str|bool|parse|union|tag)\b"
    r"|\d\.0\b|\de[+-]?\d|keyword|None"
)


def inner_fields(body: type[Body]) -> list[tuple[str, Callable[[Any], dict[str, Any]]]]:
    """Every field of a body, those of its objects included, as a way to put a value there."""
    part = {"type": "text", "text": "x"}
    places = [(name, lambda value, name=name: {name: value}) for name in body.model_fields]
    for name, of in {
        "stream_options": StreamOptions,
        "prompt_cache_options": CacheOptions,
        "chat_template_kwargs": TemplateVariables,
        "response_format": ResponseFormat,
        "structured_outputs": StructuredOutputs,
    }.items():
        if name in body.model_fields:
            places += [
                (f"{name}.{inner}", lambda value, name=name, inner=inner: {name: {inner: value}})
                for inner in of.model_fields
            ]
    if "messages" in body.model_fields:
        places += [
            (name, lambda value, name=name: {"messages": [HI[0] | {name: value}]}) for name in Message.model_fields
        ]
        places += [
            (name, lambda value, name=name: {"messages": [HI[0] | {"content": [part | {name: value}]}]})
            for name in TextPart.model_fields
        ]
        places += [
            (name, lambda value, name=name: {"messages": [HI[0] | {"cache_control": {name: value}}]})
            for name in CacheControl.model_fields
        ]
        places += [
            (name, lambda value, name=name: {"messages": [HI[0] | {"tool_calls": [CALLED | {name: value}]}]})
            for name in ToolCall.model_fields
        ]
    if "tools" in body.model_fields:
        places += [(name, lambda value, name=name: {"tools": [TOOLS[0] | {name: value}]}) for name in Tool.model_fields]
        places += [
            (name, lambda value, name=name: {"tools": [TOOLS[0] | {"function": {"name": "f", name: value}}]})
            for name in Function.model_fields
        ]
    if "tool_choice" in body.model_fields:
        places += [
            (name, lambda value, name=name: {"tool_choice": TOOLS[0] | {name: value}})
            for name in NamedTool.model_fields
        ]
    return places


@pytest.mark.parametrize("body", [CompletionBody, ChatBody, TokenizeBody, DetokenizeBody])
def test_refusals_are_in_plain_words(body: type[Body]) -> None:
    needed = {"messages": HI} if body is ChatBody else {"prompt": "hi"} if body is CompletionBody else {}
    limits, told = Settings(), set()
    for name, put in inner_fields(body):
        for value in WRONG:
            try:
                body.model_validate(needed | put(value), context=limits)
            except ValidationError as error:
                message = explain(error).body.error.message
                problem = re.sub("'[^']*'", "", message.rpartition(": ")[2])
                assert not PYDANTICS.search(problem), (name, value, message)
                told.add(problem)
    assert "should be a string." in told
    assert "is not valid." not in told


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "messages: should not be empty."),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content: should not be empty."),
        ({"cache_salt": ""}, "cache_salt: should not be empty."),
        ({"user": "x" * 513}, "user: should have at most 512 characters."),
        ({"metadata": {str(key): "" for key in range(17)}}, "metadata: should have at most 16 entries."),
        ({"seed": -(2**63) - 1}, "seed: should be at least -9223372036854775808."),
        ({"seed": 2**63}, "seed: should be less than 9223372036854775808."),
        ({"max_tokens": 2**31}, "max_tokens: should be at most 2147483647."),
        ({"max_tokens": 10**400}, "max_tokens: should be at most 2147483647."),
        ({"max_tokens": 1.5}, "max_tokens: should be an integer."),
        ({"temperature": 2.5}, "temperature: should be at most 2."),
        ({"temperature": True}, "temperature: should be a number."),
        ({"repetition_penalty": 0}, "repetition_penalty: should be at least 0.01."),
        ({"top_p": 0}, "top_p: should be more than 0."),
        ({"stream": "yes"}, "stream: should be true or false."),
        ({"tool_choice": "any"}, "tool_choice: should be 'none', 'auto' or 'required'."),
        ({"tool_choice": 1}, "tool_choice: should be 'none', 'auto', 'required' or a function as an object."),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content: is required."),
        (
            {"messages": [{"role": "user", "content": {}}]},
            "messages[0].content: should be a string or a list of text parts.",
        ),
        ({"stop": 1}, "stop: should be a string or a list of strings."),
        ({"logit_bias": []}, "logit_bias: should be a JSON object."),
        ({"chat_template_kwargs": 3}, "chat_template_kwargs: should be a JSON object."),
        ({"verbosity": "loud"}, "verbosity: should be 'low', 'medium' or 'high'."),
    ],
)
async def test_the_words_of_a_refusal(fields: dict[str, Any], message: str) -> None:
    async with calling() as caller:
        assert (await caller.chat(**fields)).json()["error"]["message"] == message


async def test_unsupported_fields_are_refused_and_their_idle_values_are_not() -> None:
    async with calling() as caller:
        for name, idle in UNSUPPORTED.items():
            response = await caller.chat(**{name: {"real": "request"}})
            assert response.status_code == 400
            assert response.json()["error"] == {
                "message": f"{name}: is not supported by this server.",
                "type": "invalid_request_error",
                "param": name,
                "code": "unsupported_parameter",
            }
            for value in (None, *idle):
                assert (await caller.chat(**{name: value})).status_code == 200, (name, value)
        assert (await caller.chat(colour="red")).json()["error"] == {
            "message": "colour: unknown field.",
            "type": "invalid_request_error",
            "param": "colour",
            "code": "unknown_parameter",
        }
        misplaced = (await caller.complete(max_completion_tokens=3)).json()["error"]
        assert (misplaced["param"], misplaced["code"]) == ("max_completion_tokens", "unsupported_parameter")


@pytest.mark.parametrize(
    ("params", "body"),
    [
        (completion_create_params.CompletionCreateParamsBase, CompletionBody),
        (chat.completion_create_params.CompletionCreateParamsBase, ChatBody),
        (chat.ChatCompletionStreamOptionsParam, StreamOptions),
        (chat.ChatCompletionFunctionToolParam, Tool),
        (FunctionDefinition, Function),
        (chat.ChatCompletionMessageFunctionToolCallParam, ToolCall),
        (chat.ChatCompletionNamedToolChoiceParam, NamedTool),
        *((params, Message) for params in get_args(chat.ChatCompletionMessageParam)),
        *((params, TextPart) for params in get_args(chat.ChatCompletionContentPartParam)),
    ],
)
def test_every_field_of_the_openai_package_is_known(params: Any, body: type[Body]) -> None:
    unknown = params.__annotations__.keys() - body.model_fields.keys() - UNSUPPORTED.keys()
    assert not unknown


SENT_TO_VLLM = """
    model max_tokens temperature top_p n stream stream_options stop presence_penalty frequency_penalty logit_bias
    logprobs seed user response_format top_k min_p typical_p repetition_penalty min_tokens ignore_eos stop_token_ids
    include_stop_str_in_output skip_special_tokens spaces_between_special_tokens prompt_logprobs allowed_token_ids
    bad_words add_special_tokens return_token_ids priority cache_salt structured_outputs use_beam_search length_penalty
    echo suffix
"""
"""Fields that users of vLLM send. Each is refused, or `test_no_field_is_accepted_and_ignored` holds that it acts."""


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (CompletionBody, f"{SENT_TO_VLLM} prompt best_of"),
        (
            ChatBody,
            f"{SENT_TO_VLLM} messages max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls "
            "add_generation_prompt continue_final_message chat_template_kwargs reasoning_effort include_reasoning",
        ),
        (StructuredOutputs, "json regex choice grammar json_object whitespace_pattern structural_tag"),
        (StreamOptions, "include_usage continuous_usage_stats"),
    ],
)
def test_every_field_that_users_of_vllm_send_is_known(body: type[Body], names: str) -> None:
    known = {field.alias or name for name, field in body.model_fields.items()} | UNSUPPORTED.keys()
    assert not set(names.split()) - known


@pytest.mark.parametrize("nulls", [False, True])
async def test_an_answer_can_be_sent_back_as_history(nulls: bool) -> None:
    given = chat.ChatCompletionMessage(
        role="assistant", content="yes", refusal=None, annotations=[], audio=None, function_call=None, tool_calls=None
    )
    async with calling() as caller:
        own = (await caller.chat()).json()["choices"][0]["message"]
        assert own["refusal"] is None
        for message in (given.model_dump(exclude_none=not nulls), own):
            assert (await caller.chat(messages=[*HI, message, *HI])).status_code == 200


ROUTED = {"stream": False, "no_stop_trim": False, "ignore_eos": False, "skip_special_tokens": True}
"""What routers in Rust add to a body that they have read and write again."""
ROUTED |= {"return_hidden_states": False}
ROUTED_COMPLETION = ROUTED | {"continue_final_message": False, "add_generation_prompt": True, "top_logprobs": 0}
ROUTED_CHAT = ROUTED | {"separate_reasoning": True, "stream_reasoning": True, "include_reasoning": True}
ROUTED_CHAT |= {"logprobs": False, "continue_final_message": False}
IDLE_CHATS: list[dict[str, Any]] = [
    ROUTED_CHAT,
    {"tool_choice": "auto"},
    {"tool_choice": "none", "tools": [], "parallel_tool_calls": True},
    {"parallel_tool_calls": False, "separate_reasoning": False},
    {"logprobs": False, "top_logprobs": 0},
    {"top_logprobs": 0},
    {"stream_options": {"include_usage": False}},
    {"stream_options": {}},
    {"stream_options": {"include_obfuscation": False}},
    {"stop": [], "logit_bias": {}, "stop_token_ids": []},
    {"chat_template_kwargs": {}, "metadata": {}},
    {"store": False, "service_tier": "auto", "verbosity": "medium"},
]


async def test_what_asks_for_nothing_changes_nothing() -> None:
    async with calling() as caller:
        plain = await outcome(caller, "/v1/chat/completions", {"messages": HI})
        for idle in IDLE_CHATS:
            assert await outcome(caller, "/v1/chat/completions", {"messages": HI} | idle) == plain, idle
            assert "x-headlight-ignored" not in (await caller.chat(**idle)).headers
        plain = await outcome(caller, "/v1/completions", {"prompt": "hi"})
        assert await outcome(caller, "/v1/completions", {"prompt": "hi", "echo": False} | ROUTED_COMPLETION) == plain
        hidden = {"id": "m1", "cache_control": {"type": "ephemeral"}}
        part = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
        part["prompt_cache_breakpoint"] = {"mode": "explicit"}
        labelled = await outcome(caller, "/v1/chat/completions", {"messages": [HI[0] | hidden | {"content": [part]}]})
        assert labelled == await outcome(caller, "/v1/chat/completions", {"messages": HI})


TOLD = {"reasoning_effort": "low", "chat_template_kwargs": {"thinking": True}, "continue_final_message": True}
TOLD["tools"] = TOOLS


async def test_the_template_is_told_names_and_variables() -> None:
    async with calling() as caller:
        messages = [{"role": "user", "content": "hi", "name": "Ann"}]
        kwargs = {"enable_thinking": False, "thinking_budget": 8.0, "reasoning_effort": "low"}
        for route, fields in (("/v1/chat/completions", {}), ("/tokenize", {"add_special_tokens": False})):
            body = {"messages": messages, "reasoning_effort": "low", "chat_template_kwargs": kwargs} | fields
            response = await caller.http.post(route, json=body)
            assert response.status_code == 200, response.text
            prompt = caller.engine.streams[-1].prompt if "chat" in route else response.json()["tokens"]
            assert bytes(prompt) == (
                b"reasoning_effort=low|enable_thinking=False|thinking_budget=8|user@Ann:hi|assistant:"
            )
        # This template reads no such variable.
        response = await caller.chat(chat_template_kwargs={"thinking": True})
        assert response.headers["x-headlight-ignored"] == "chat_template_kwargs.thinking"
        for name, value in TOLD.items():
            response = await caller.http.post("/tokenize", json={"prompt": "hi", name: value})
            assert response.json()["error"]["param"] == name


async def test_hints_that_ask_for_something_are_named() -> None:
    async with calling() as caller:
        response = await caller.complete(store=True, verbosity="low", service_tier="flex", metadata={"a": "b"})
        assert response.headers["x-headlight-ignored"] == "service_tier, store, verbosity"


WARNED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": HI, "colour": "red", "shade": None}, "colour, shade"),
    ("/v1/chat/completions", {"messages": [HI[0] | {"mood": "good"}]}, "messages[0].mood"),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "size": 3}]}]},
        "messages[0].content[0].size",
    ),
    (
        "/v1/chat/completions",
        {"messages": HI, "stream": True, "stream_options": {"speed": 1}},
        "stream_options.speed",
    ),
    (
        "/v1/chat/completions",
        {"messages": HI, "chat_template_kwargs": {"bos_token": "x"}},
        "chat_template_kwargs.bos_token",
    ),
    ("/v1/completions", {"prompt": "hi", "a\r\nSet-Cookie: b, c": 1}, "a??Set-Cookie??b??c"),
    ("/v1/completions", {"prompt": "hi", "x" * 300: 1}, "x" * 64),
    ("/tokenize", {"prompt": "hi", "colour": 1}, "colour"),
    ("/tokenize", {"messages": [HI[0] | {"mood": "good"}]}, "messages[0].mood"),
    ("/detokenize", {"tokens": [104], "colour": 1}, "colour"),
]


async def test_unknown_fields_are_named_where_the_operator_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with calling(unknown_fields="warn") as caller, calling() as strict:
        for route, body, named in WARNED:
            response = await caller.http.post(route, json=body)
            assert response.status_code == 200, response.text
            assert response.headers["x-headlight-ignored"] == named
            said = [record.fields for record in caplog.records if record.name == "service.api.observe"]  # type: ignore[attr-defined]
            assert said[-1]["ignored"] == named.replace(", ", ",")
            refused = await strict.http.post(route, json=body)
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "unknown_parameter"
        many = await caller.complete(**{f"x{i}": 1 for i in range(250)})
        assert len(many.headers["x-headlight-ignored"].split(", ")) == 16
        assert "x-headlight-ignored" not in (await caller.complete()).headers


async def test_what_would_change_the_answer_is_refused_even_then() -> None:
    async with calling(unknown_fields="warn") as caller:
        for name in UNSUPPORTED:
            assert (await caller.chat(**{name: {"real": "request"}})).status_code == 400, name
        for fields in (
            {"prompt": "hi"},
            {"tokens": [1]},
            {"enable_thinking": True},
            {"chat_template_kwargs": {"add_generation_prompt": False}},
            {"tool_calls": [{}]},
            {"messages": [HI[0] | {"tool_calls": [CALLED]}]},
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        ):
            response = await caller.chat(**fields)
            assert response.status_code == 400, fields
            assert response.json()["error"]["code"] == "unsupported_parameter"


def integer_fields(body: type[Body]) -> list[str]:
    """The fields of a body that hold whole numbers, by its own description."""
    fields = body.model_json_schema()["properties"]
    return [name for name, field in fields.items() if {"integer"} & {one["type"] for one in _types(field)}]


def _types(field: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in (field, *field.get("anyOf", ())) if "type" in one]


async def test_whole_numbers_may_be_written_as_floats() -> None:
    beside: dict[str, dict[str, Any]] = {"top_logprobs": {"logprobs": True}}
    async with calling() as caller:
        for call, body in ((caller.complete, CompletionBody), (caller.chat, ChatBody)):
            names = integer_fields(body)
            assert len(names) > 5
            for name in names:
                needed = beside.get(name, {})
                assert (await call(**needed | {name: 2.0})).status_code == 200, name
                for wrong in (2.5, "2", True, 1e300, -1e300):
                    assert (await call(**needed | {name: wrong})).status_code == 400, (name, wrong)
        await caller.complete(max_tokens=8.0)
        assert caller.engine.params.max_tokens == 8
        await caller.complete(prompt=[[104, 105.0], [106.0]], stop_token_ids=[111.0])
        assert [stream.prompt for stream in caller.engine.streams[-2:]] == [[104, 105], [106]]
        assert caller.engine.params.stop_token_ids == (EOS, 111)
        await caller.complete(prompt=[104.0, 105])
        assert caller.engine.streams[-1].prompt == [104, 105]
        assert (await caller.http.post("/detokenize", json={"tokens": [104.0]})).json() == {"prompt": "h"}
        for wrong in ([1, 2.5], [1.5], ["1"], [True]):
            assert (await caller.http.post("/detokenize", json={"tokens": wrong})).status_code == 400


async def test_the_newer_name_of_max_tokens_wins() -> None:
    async with calling() as caller:
        for older in (3, 9, None):
            assert (await caller.chat(max_tokens=older, max_completion_tokens=4)).status_code == 200
            assert caller.engine.params.max_tokens == 4


GREEDY = SamplingDefaults(temperature=0.0, top_p=0.9)
NARROW = SamplingDefaults(temperature=0.5, top_k=1)


@pytest.mark.parametrize(
    ("defaults", "fields", "temperature", "top_k"),
    [
        (GREEDY, {"n": 2}, 1.0, 0),
        (GREEDY, {"n": 2, "top_p": 0.5}, 1.0, 0),
        (GREEDY, {"n": 2, "temperature": 0}, 0.0, 0),
        (GREEDY, {"n": 2, "temperature": 0.3}, 0.3, 0),
        (GREEDY, {"n": 2, "top_k": 1}, 1.0, 1),
        (GREEDY, {"n": 1}, 0.0, 0),
        (GREEDY, {}, 0.0, 0),
        (NARROW, {"n": 2}, 1.0, 0),
        (NARROW, {}, 0.5, 1),
        (SamplingDefaults(temperature=0.5, top_k=9), {"n": 2}, 0.5, 9),
    ],
)
async def test_several_choices_are_not_copies(
    defaults: SamplingDefaults, fields: dict[str, Any], temperature: float, top_k: int
) -> None:
    async with calling(sampling=defaults) as caller:
        for call in (caller.complete, caller.chat):
            assert (await call(**fields)).status_code == 200
            assert (caller.engine.params.temperature, caller.engine.params.top_k) == (temperature, top_k)


@pytest.mark.parametrize(
    ("num_blocks", "what", "most"), [(4, "KV cache", 64), (16, "context", 256), (64, "context", 256)]
)
async def test_the_length_that_is_promised_is_the_one_that_holds(num_blocks: int, what: str, most: int) -> None:
    """Whichever bounds it: the model's context, or a cache that is smaller."""
    async with calling() as caller:
        caller.engine.limits = replace(caller.engine.limits, num_blocks=num_blocks)
        (card,) = (await caller.http.get("/v1/models")).json()["data"]
        assert card["max_model_len"] == most == caller.engine.limits.capacity
        response = await caller.complete(prompt=[1] * (most - 14), max_tokens=15)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert what in response.json()["error"]["message"]
        assert f"{most} tokens" in response.json()["error"]["message"]
        assert (await caller.complete(prompt=[1] * (most - 14), max_tokens=14)).status_code == 200
        assert (await caller.complete(prompt=[1] * most)).status_code == 400


async def test_a_model_without_a_template_takes_no_chats() -> None:
    async with calling(template=None) as caller:
        assert (await caller.chat()).status_code == 400
        assert (await caller.complete()).status_code == 200


async def test_a_large_prompt_blocks_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    encode = FakeTokenizer.encode

    def slow(self: FakeTokenizer, text: str, **options: bool) -> list[int]:
        assert len(text) < 1000 or go_on.wait(5)
        return encode(self, text, **options)

    monkeypatch.setattr(FakeTokenizer, "encode", slow)
    async with calling() as caller:
        large = [asyncio.create_task(request) for request in (
            caller.complete(prompt="x" * 50_000), caller.chat(messages=[{"role": "user", "content": "x" * 50_000}])
        )]  # fmt: skip
        assert (await caller.complete()).status_code == 200
        assert not any(task.done() for task in large)
        go_on.set()
        for task in large:
            assert (await task).json()["error"]["code"] == "context_length_exceeded"
