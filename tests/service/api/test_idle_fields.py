"""Fields without an effect: those that ask for nothing, those of other servers, hints, and unknown ones."""

import logging
from typing import Any, get_args

import pytest
from openai.types import chat, completion_create_params
from openai.types.shared_params import FunctionDefinition

from service.api.schemas.body import Body, Labels
from service.api.schemas.chat import ChatBody, Function, Message, NamedTool, TemplateVariables, TextPart, Tool, ToolCall
from service.api.schemas.completions import CompletionBody
from service.api.schemas.embeddings import EmbeddingBody
from service.api.schemas.generation import StreamOptions
from service.api.schemas.grammars import ResponseFormat, StructuredOutputs
from service.api.schemas.idle import DECLARED, UNSUPPORTED
from service.api.schemas.inspect import InspectBody
from service.api.schemas.judgements import RerankBody, ScoreBody
from service.api.schemas.tokens import DetokenizeBody, TokenizeBody
from tests.service.api.asked import CALLED, TOOLS, outcome
from tests.service.api.fakes import HI, calling

BODIES = (CompletionBody, ChatBody, EmbeddingBody, ScoreBody, RerankBody, InspectBody, TokenizeBody, DetokenizeBody)
PARTS = (StreamOptions, TemplateVariables, ResponseFormat, StructuredOutputs)
OF_OTHERS = {"include", "instructions", "max_output_tokens", "output_config", "stop_sequences", "text"}
OF_OTHERS |= {"reasoning_content", "tool_call_id", "tool_calls"}
"""Fields of messages, of responses and of Anthropic's messages."""


def test_every_field_of_a_request_is_known_where_it_is_out_of_place() -> None:
    declared = {
        name
        for body in (*BODIES, *PARTS)
        for name, field in body.model_fields.items()
        if field.alias is None and name not in Labels.model_fields
    }
    assert (declared | OF_OTHERS) - UNSUPPORTED.keys() == DECLARED


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
        # A field that a later version of the package has beside them.
        given_later = given.model_dump(exclude_none=not nulls) | ({"mood": None} if nulls else {})
        for message in (given_later, own):
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
    ("/v1/chat/completions", {"messages": HI, "colour": "red", "shade": 0, "mood": None}, "colour, shade"),
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
            said = [vars(record)["fields"] for record in caplog.records if record.name == "service.api.observe"]
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
