"""What does not fit is refused by the name of its field, in plain words."""

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from service.api.errors import explain
from service.api.schemas.body import Body, CacheControl, CacheOptions
from service.api.schemas.chat import ChatBody, Function, Message, NamedTool, TemplateVariables, TextPart, Tool, ToolCall
from service.api.schemas.completions import CompletionBody
from service.api.schemas.generation import StreamOptions
from service.api.schemas.grammars import ResponseFormat, StructuredOutputs
from service.api.schemas.tokens import DetokenizeBody, TokenizeBody
from service.settings import Settings
from tests.service.api.asked import CALLED, TOOLS, schema_format
from tests.service.api.fakes import HI, calling

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
    ({"colour": 0}, "colour"),
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
    ({"messages": [{"role": "user", "content": "x" * 250}]}, "messages"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 1}, "logprobs"),
    ({"max_completion_tokens": 250}, "max_completion_tokens"),
    ({"max_completion_tokens": 200, "max_tokens": 1, "n": 6}, "max_completion_tokens"),
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


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("completions", {"prompt": [[1] * 50, [1] * 50], "max_tokens": 1}, "prompt"),
        ("completions", {"prompt": [1] * 100, "n": 3, "max_tokens": 1}, "prompt"),
        ("chat/completions", {"messages": HI, "max_tokens": 1}, "messages"),
        ("embeddings", {"input": [[1] * 50, [1] * 50]}, "input"),
        ("inspect", {"tokens": [1] * 100, "attention": "all"}, "tokens"),
    ],
)
async def test_the_tokens_of_all_prompts_are_bounded(route: str, body: dict[str, Any], param: str) -> None:
    async with calling() as caller:
        assert (await caller.http.post(f"/v1/{route}", json=body)).status_code == 200
        tokens = sum({id(stream.prompt): len(stream.prompt) for stream in caller.engine.streams}.values())
    for bound, status in ((tokens, 200), (tokens - 1, 400)):
        async with calling(max_request_tokens=bound) as caller:
            answer = await caller.http.post(f"/v1/{route}", json=body)
            assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert f"{tokens} tokens of all prompts are more than the {tokens - 1}" in error["message"]
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
