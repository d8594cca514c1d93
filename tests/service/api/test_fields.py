"""What each field of a request does: what arrives at the engine, what comes back, what is refused."""

import asyncio
import re
import threading
from dataclasses import fields, replace
from typing import Any

import pytest

from model.checkpoint.sampling_defaults import SamplingDefaults
from service.api.schemas.body import Body
from service.api.schemas.chat import ChatBody
from service.api.schemas.completions import CompletionBody
from service.engine.messages import Delta, Refusal
from tests.service.api.asked import TOOLS, outcome, schema_format
from tests.service.api.fakes import BOS, EOS, HI, FakeTemplate, FakeTokenizer, calling

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
        ("seed", -2, 2**63 - 2),
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
        for unseeded in ({}, {"seed": -1}, {"seed": -1}):
            await caller.complete(**unseeded)
        seeds = [stream.params.seed for stream in caller.engine.streams]
        assert len(set(seeds)) == len(seeds)
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


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_what_does_not_fit_is_told_in_the_words_that_clients_look_for(name: str) -> None:
    """By "maximum context length", and its numbers, agents know that a history has to be cut; not all read the code."""
    async with calling() as caller:
        hi = [{"role": "user", "content": "hi"}]
        said = (await caller.chat(messages=hi, **{name: 250})).json()["error"]
        found = re.match(
            r"This model's maximum context length is (\d+) tokens\. However, you requested (\d+) tokens "
            r"\((\d+) in the messages, (\d+) in the completion\)\.",
            said["message"],
        )
        assert found, said
        room, requested, prompt, wanted = map(int, found.groups())
        assert (room, wanted, said["param"]) == (caller.engine.limits.capacity, 250, name)
        assert requested == prompt + wanted > room
        for call, name_of_text, text in (
            (caller.chat, "messages", [{"role": "user", "content": "x" * 300}]),
            (caller.complete, "prompt", "x" * 300),
        ):
            said = (await call(**{name_of_text: text})).json()["error"]
            assert said["message"].startswith(f"This model's maximum context length is {room} tokens. However, your ")
            assert said["param"] == name_of_text
        read = (await caller.http.post("/v1/embeddings", json={"input": "x" * 300})).json()["error"]
        assert read["message"].startswith("This model's maximum context length is")
        assert "completion" not in read["message"]


LONG = "x" * 3000


@pytest.mark.parametrize(
    ("path", "name", "sent"),
    [
        ("/v1/completions", "prompt", LONG),
        ("/v1/completions", "prompt", ["a", LONG]),
        ("/v1/chat/completions", "messages", [{"role": "user", "content": LONG}]),
        ("/v1/responses", "input", LONG),
        ("/v1/messages", "messages", [{"role": "user", "content": LONG}]),
        ("/v1/embeddings", "input", LONG),
        ("/v1/inspect", "prompt", LONG),
        ("/v1/inspect", "messages", [{"role": "user", "content": LONG}]),
        ("/v1/score", "documents", LONG),
        ("/v1/rerank", "documents", [LONG]),
    ],
)
async def test_what_is_known_to_be_too_long_is_refused_without_its_tokens(path: str, name: str, sent: Any) -> None:
    """The fake tokenizer knows it of all texts, and never gets to encode such a one."""
    beside = {"/v1/score": {"queries": "q"}, "/v1/rerank": {"query": "q"}, "/v1/messages": {"max_tokens": 1}}
    words = {"yes": "y", "no": "n"} if path in ("/v1/score", "/v1/rerank") else {}
    async with calling() as caller:
        answer = await caller.http.post(path, json={name: sent, **words, **beside.get(path, {})})
        assert answer.status_code == 400, answer.text
        told = answer.json()["error"]
        assert re.search(
            rf"This model's maximum context length is {caller.engine.limits.capacity} tokens\. "
            rf"However, your {name} resulted in at least 3\d\d\d tokens\.",
            told["message"],
        ), told
        if path != "/v1/messages":
            assert (told["param"], told["code"]) == (name, "context_length_exceeded")


@pytest.mark.parametrize(
    "sent", [{"prompt": LONG}, {"messages": [{"role": "user", "content": LONG}]}], ids=["text", "chat"]
)
async def test_tokens_are_counted_of_any_text(sent: dict[str, Any]) -> None:
    async with calling() as caller:
        counted = await caller.http.post("/tokenize", json=sent)
        assert counted.status_code == 200
        assert counted.json()["count"] > len(LONG) > caller.engine.limits.capacity


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
