"""What clients get: the openai package reads it, and its parts agree with one another."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from model.token_logprobs import TokenLogprobs
from service.api.completions import LogprobsWriter
from service.api.schemas.chat import ChatBody
from service.api.schemas.completions import CompletionBody
from service.api.schemas.sampling import Sampling
from service.engine.status import EngineHealth
from service.generation import Piece
from tests.service.api.fakes import BOS, EOS, HI, LIMITS, MODEL, FakeTokenizer, Running, calling, events, serving


@asynccontextmanager
async def talking(**settings: Any) -> AsyncIterator[tuple[Running, AsyncOpenAI]]:
    async with (
        serving(**settings) as server,
        AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as client,
    ):
        yield server, client


async def test_the_openai_package_reads_a_chat() -> None:
    async with talking() as (server, client):
        server.engine.cached_tokens = 7
        answer = await client.chat.completions.create(model=MODEL, messages=HI)
        assert answer.object == "chat.completion"
        assert answer.choices[0].message.content == "Hello, world"
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (18, 13, 31)
        assert answer.usage.prompt_tokens_details
        assert answer.usage.prompt_tokens_details.cached_tokens == 7


async def test_the_openai_package_reads_a_chat_stream() -> None:
    async with talking() as (_, client):
        stream = await client.chat.completions.create(
            model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}
        )
        first, *pieces, last, usage = [chunk async for chunk in stream]
        assert first.choices[0].delta.role == "assistant"
        assert first.choices[0].delta.content == ""
        assert [piece.choices[0].delta.content for piece in pieces] == list("Hello, world")
        assert all(piece.choices[0].finish_reason is None and piece.usage is None for piece in pieces)
        assert last.choices[0].finish_reason == "stop"
        assert usage.choices == []
        assert usage.usage
        assert usage.usage.completion_tokens == 13
        assert len({chunk.id for chunk in (first, *pieces, last, usage)}) == 1


async def test_the_openai_package_reads_completions() -> None:
    async with talking() as (_, client):
        answer = await client.completions.create(model=MODEL, prompt="hi", echo=True, max_tokens=4)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hiHell", "length")
        stream = await client.completions.create(model=MODEL, prompt="hi", echo=True, max_tokens=4, stream=True)
        chunks = [chunk async for chunk in stream]
        assert [chunk.choices[0].text for chunk in chunks] == ["hi", *"Hell"]
        assert chunks[-1].choices[0].finish_reason == "length"
        assert all(chunk.usage is None for chunk in chunks)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model=MODEL, prompt="hi", temperature=3)
        assert caught.value.param == "temperature"
        with pytest.raises(openai.NotFoundError, match="gpt-4"):
            await client.completions.create(model="gpt-4", prompt="hi")
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).owned_by == "headlight"


async def test_nulls_are_where_openai_has_them() -> None:
    async with calling() as caller:
        chunks = events(await caller.chat(stream=True))
        assert chunks[1]["choices"][0] == {
            "index": 0,
            "delta": {"content": "H"},
            "logprobs": None,
            "finish_reason": None,
        }
        assert "usage" not in chunks[1]
        assert chunks[-1] is None
        counted = events(await caller.chat(stream=True, stream_options={"include_usage": True}))
        assert counted[1]["usage"] is None


async def test_choices_interleave_and_keep_their_indices() -> None:
    async with talking() as (_, client):
        stream = await client.chat.completions.create(model=MODEL, messages=HI, n=3, stream=True)
        order = [(chunk.choices[0].index, chunk.choices[0].delta.content) async for chunk in stream]
        for index in range(3):
            assert "".join(content or "" for own, content in order if own == index) == "Hello, world"
        assert {index for index, _ in order[3:9]} == {0, 1, 2}
        answer = await client.completions.create(model=MODEL, prompt=["a", "b"], n=2)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.usage
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 52)


async def test_cached_tokens_count_once_a_prompt() -> None:
    async with calling() as caller:
        caller.engine.cached_tokens = 2
        usage = (await caller.complete(prompt=["a", "b"], n=2)).json()["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": 4}


async def test_counts_in_every_chunk() -> None:
    async with calling() as caller:
        options = {"include_usage": True, "continuous_usage_stats": True}
        for response in (
            await caller.complete(stream=True, stream_options=options),
            await caller.chat(stream=True, stream_options=options),
        ):
            *chunks, done = events(response)
            counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
            assert counts == sorted(counts)
            assert counts[-3:] == [12, 13, 13]
            assert done is None


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_logprobs(stream: bool) -> None:
    async with calling() as caller:
        caller.engine.text = "한!".encode()
        response = await caller.chat(logprobs=True, top_logprobs=2, stream=stream)
        if stream:
            choices = [chunk["choices"][0] for chunk in events(response)[:-1]]
            content = [entry for choice in choices for entry in (choice["logprobs"] or {"content": []})["content"]]
        else:
            content = response.json()["choices"][0]["logprobs"]["content"]
        assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == "한!</s>"
        assert content[-2] == {
            "token": "!",
            "logprob": -0.5,
            "bytes": [33],
            "top_logprobs": [
                {"token": "!", "logprob": -0.5, "bytes": [33]},
                {"token": '"', "logprob": -1.5, "bytes": [34]},
            ],
        }
        assert content[0]["token"] == "�"


async def test_chat_logprobs_without_alternatives() -> None:
    async with calling() as caller:
        answer = (await caller.chat(logprobs=True)).json()
        assert {len(entry["top_logprobs"]) for entry in answer["choices"][0]["logprobs"]["content"]} == {0}
        assert (await caller.chat()).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("stream", [False, True])
async def test_completion_logprobs(stream: bool) -> None:
    async with calling() as caller:
        caller.engine.text = "é한!".encode()
        response = await caller.complete(logprobs=1, stream=stream)
        answers = events(response)[:-1] if stream else [response.json()]
        parts = [answer["choices"][0]["logprobs"] for answer in answers]
        joined = {name: [item for part in parts for item in part[name]] for name in parts[0]}
        assert joined["tokens"] == [*(f"bytes:\\x{byte:02x}" for byte in "é한".encode()), "!", "</s>"]
        assert joined["text_offset"] == [0, 0, 1, 1, 1, 2, 3]
        assert joined["token_logprobs"] == [-0.5] * 7
        assert joined["top_logprobs"][-2] == {"!": -0.5}
        assert joined["top_logprobs"][-1]["</s>"] == -0.5


@pytest.mark.parametrize("text", ["", "Hello"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 1},
        {"stop": "llo"},
        {"stop": "</s>"},
        {"stop_token_ids": [ord("l")]},
        {"stop_token_ids": [ord("l")], "include_stop_str_in_output": True},
        {"skip_special_tokens": False},
        {"echo": True},
    ],
    ids=str,
)
async def test_every_token_that_was_drawn_has_its_log_probability(text: str, fields: dict[str, Any]) -> None:
    """One that ends the completion too: evaluation harnesses count from the end of the list to that of the prompt.

    Chats have the same entries.
    """
    async with calling() as caller:
        caller.engine.text = text.encode()
        asked = {"prompt": [65, 66], "logprobs": 0, "return_token_ids": True, **fields}
        answer = (await caller.complete(**asked)).json()
        [choice] = answer["choices"]
        logprobs = choice["logprobs"]
        drawn = len(choice["token_ids"])
        assert drawn == answer["usage"]["completion_tokens"] > 0
        assert {len(entries) for entries in logprobs.values()} == {drawn + 2 * ("echo" in fields)}
        assert logprobs["token_logprobs"][-drawn:] == [-0.5] * drawn
        streamed = events(await caller.complete(**asked, stream=True))[:-1]
        parts = [part["choices"][0]["logprobs"] for part in streamed]
        for name, entries in logprobs.items():
            assert [entry for part in parts if part for entry in part[name]] == entries
        if "echo" in fields:
            return
        asked = {"logprobs": True, "return_token_ids": True, **fields}
        [chat] = (await caller.chat(**asked)).json()["choices"]
        assert chat["token_ids"] == choice["token_ids"]
        content = chat["logprobs"]["content"]
        assert [entry["token"] for entry in content] == logprobs["tokens"]
        assert [entry["logprob"] for entry in content] == logprobs["token_logprobs"]
        streamed = events(await caller.chat(**asked, stream=True))[:-1]
        parts = [part["choices"][0]["logprobs"] for part in streamed]
        assert [entry for part in parts if part for entry in part["content"]] == content


async def test_the_chosen_token_is_among_the_likeliest() -> None:
    async with calling() as caller:
        logprobs = (await caller.complete(logprobs=0, max_tokens=1)).json()["choices"][0]["logprobs"]
        assert logprobs["top_logprobs"] == [{"H": -0.5}]


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ([300, 65, 301, 66], {"": -0.5, "A": -1.5, "B": -3.5}),
        ([65, 301, 300, 66], {"A": -0.5, "": -1.5, "B": -3.5}),
        ([300, 65, 66], {"": -0.5, "A": -1.5, "B": -2.5}),
        ([65, 66], {"A": -0.5, "B": -1.5, "": -9.5}),
    ],
    ids=str,
)
def test_the_likeliest_of_tokens_that_share_a_name_has_it(top: list[int], expected: dict[str, float]) -> None:
    """Tokens beyond the vocabulary share the empty name, as a byte token and a letter share theirs.

    A chosen token below a likelier one of its name would otherwise be taken for the likeliest.
    """
    values = [-0.5 - index for index in range(len(top))]
    chosen = values[top.index(301)] if 301 in top else -9.5
    writer = LogprobsWriter(FakeTokenizer(), skip_special=True)
    entries = writer.empty()
    writer.write(entries, [Piece("", 301, TokenLogprobs(chosen, top, values, 9), None)])
    assert entries.token_logprobs == [chosen]
    assert entries.top_logprobs == [expected]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "text", "reason"),
    [
        ({"stop": "lo, w"}, "Hel", "stop"),
        ({"stop": ["nothing", "wor"]}, "Hello, ", "stop"),
        ({"stop": "wor", "include_stop_str_in_output": True}, "Hello, wor", "stop"),
        ({"stop": "worm"}, "Hello, world", "stop"),
        ({"stop": "worm", "max_tokens": 10}, "Hello, wor", "length"),
        ({"stop_token_ids": [ord("w")]}, "Hello, ", "stop"),
        ({"stop_token_ids": [ord("w")], "include_stop_str_in_output": True}, "Hello, w", "stop"),
        ({"stop_token_ids": [ord("w")], "stop": ", worm"}, "Hello, ", "stop"),
        ({"stop": "world</s>"}, "Hello, ", "stop"),
        ({"stop": "world</s>", "include_stop_str_in_output": True}, "Hello, world</s>", "stop"),
        ({"stop": "world</s>", "skip_special_tokens": False}, "Hello, ", "stop"),
        ({"stop": "</s>\n"}, "Hello, world", "stop"),
        ({"stop": "l", "min_tokens": 2}, "He", "stop"),
        ({"stop": "l", "min_tokens": 3}, "Hel", "stop"),
        ({"stop": "l", "min_tokens": 4}, "Hello, wor", "stop"),
        ({"stop": "lo, w", "min_tokens": 7}, "Hel", "stop"),
        ({"stop": "lo, w", "min_tokens": 8}, "Hello, world", "stop"),
        ({"stop": ["lo, w", "d"], "min_tokens": 12, "max_tokens": 12}, "Hello, world", "length"),
        ({"stop": ["worm", "</s>"], "include_stop_str_in_output": True}, "Hello, world</s>", "stop"),
        ({"stop": "</s>", "skip_special_tokens": False}, "Hello, world", "stop"),
        (
            {"stop": "</s>", "skip_special_tokens": False, "include_stop_str_in_output": True},
            "Hello, world</s>",
            "stop",
        ),
        ({"skip_special_tokens": False}, "Hello, world", "stop"),
        ({"skip_special_tokens": False, "include_stop_str_in_output": True}, "Hello, world</s>", "stop"),
    ],
)
async def test_where_the_text_ends(fields: dict[str, Any], text: str, reason: str, stream: bool) -> None:
    async with calling() as caller:
        response = await caller.complete(**fields, stream=stream)
        answers = events(response)[:-1] if stream else [response.json()]
        assert "".join(answer["choices"][0]["text"] for answer in answers) == text
        assert [answer["choices"][0]["finish_reason"] for answer in answers][-1] == reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("fields", "text", "drawn"),
    [
        ({"stop": "</s>"}, "Hello", 6),
        ({"stop": "</s>", "include_stop_str_in_output": True}, "Hello</s>", 6),
        ({"stop": "</s>", "skip_special_tokens": False}, "Hello", 6),
        ({"stop": "</s>", "min_tokens": 6}, "Hello, world", 14),
        ({"stop": "</s>, w"}, "Hello", 9),
        ({"stop": "llo</s>"}, "He", 6),
        ({"stop": "llo</s>, w"}, "He", 9),
        ({"stop": ["llo</s>, worm", "o<s>"]}, "Hello, world", 16),
    ],
)
async def test_stop_strings_find_special_tokens_that_are_drawn_on_the_way(
    fields: dict[str, Any], text: str, drawn: int, chat: bool, n: int, stream: bool
) -> None:
    async with calling() as caller:
        caller.engine.text = [*b"Hello", EOS, *b", world", EOS, BOS, BOS]
        ask = caller.chat if chat else caller.complete
        usage = {"stream_options": {"include_usage": True}} if stream else {}
        response = await ask(**fields, **usage, ignore_eos=True, max_tokens=16, n=n, stream=stream)
        answers = events(response)[:-1] if stream else [response.json()]
        choices = [choice for answer in answers for choice in answer["choices"]]
        for index in range(n):
            parts = [choice for choice in choices if choice["index"] == index]
            told = (choice.get("delta") or choice.get("message") or {"content": choice.get("text")} for choice in parts)
            assert "".join(part.get("content") or "" for part in told) == text
            assert parts[-1]["finish_reason"] == ("length" if drawn == 16 else "stop")
        assert answers[-1]["usage"]["completion_tokens"] == drawn * n


@pytest.mark.parametrize("stream", [False, True])
async def test_token_ids(stream: bool) -> None:
    async with calling() as caller:
        response = await caller.complete(return_token_ids=True, stream=stream)
        answers = events(response)[:-1] if stream else [response.json()]
        choices = [answer["choices"][0] for answer in answers]
        assert choices[0]["prompt_token_ids"] == [BOS, *b"hi"]
        assert [token for choice in choices for token in choice["token_ids"]] == [*b"Hello, world", EOS]

        response = await caller.chat(return_token_ids=True, stream=stream)
        answers = events(response)[:-1] if stream else [response.json()]
        assert answers[0]["prompt_token_ids"] == [*b"user:hi|assistant:"]
        assert [t for a in answers for t in a["choices"][0].get("token_ids", [])] == [*b"Hello, world", EOS]


@pytest.mark.parametrize("counted", [{}, {"stream_options": {"include_usage": True}}])
async def test_chunks_of_any_text_have_the_form_of_those_that_tell_more(counted: dict[str, Any]) -> None:
    text = "".join(map(chr, range(128))) + "\x80\xff\u2028\ufffd👋"
    async with calling() as caller:
        caller.engine.text = text.encode()
        for ask, key in ((caller.chat, "delta"), (caller.complete, "text")):
            plain = events(await ask(stream=True, max_tokens=200, **counted))[:-1]
            more = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}} if counted else {}
            fuller = events(await ask(stream=True, max_tokens=200, return_token_ids=True, **more))[:-1]
            told = [[chunk for chunk in stream if _text_of(chunk, key)] for stream in (plain, fuller)]
            assert [_text_of(chunk, key) for chunk in told[0]] == [*text]
            for chunk, other in zip(*told, strict=True):
                del other["choices"][0]["token_ids"]
                other["id"], other["created"] = chunk["id"], chunk["created"]
                other.pop("prompt_token_ids", None)
                assert chunk | {"usage": None} == other | {"usage": None}
                assert chunk.keys() == other.keys()


def _text_of(chunk: dict[str, Any], key: str) -> str | None:
    choice = chunk["choices"][0] if chunk["choices"] else {}
    text = choice.get(key)
    return text.get("content") if isinstance(text, dict) else text


async def test_characters_are_never_split() -> None:
    async with calling() as caller:
        caller.engine.text = "안녕 👋".encode()
        pieces = [chunk["choices"][0]["text"] for chunk in events(await caller.complete(stream=True))[:-1]]
        assert [piece for piece in pieces if piece] == list("안녕 👋")
        assert len(pieces) == 5


async def test_tokenize_and_back() -> None:
    async with calling() as caller:
        for body, tokens in [
            ({"prompt": "hi</s>"}, [BOS, *b"hi", EOS]),
            ({"prompt": "hi", "add_special_tokens": False}, [*b"hi"]),
            ({"messages": HI}, [*b"user:hi|assistant:"]),
            ({"messages": HI, "add_generation_prompt": False}, [*b"user:hi|"]),
        ]:
            answer = (await caller.http.post("/tokenize", json=body)).json()
            room = caller.engine.limits.capacity
            assert answer == {"tokens": tokens, "count": len(tokens), "max_model_len": room}
        for body, offsets in [
            ({"prompt": "h한</s>"}, [[0, 0], [0, 1], [1, 1], [1, 1], [1, 2], [2, 6]]),
            ({"messages": HI, "add_generation_prompt": False}, [[place, place + 1] for place in range(8)]),
        ]:
            answer = (await caller.http.post("/tokenize", json=body | {"return_offsets": True})).json()
            assert answer["offsets"] == offsets
        for body in ({}, {"prompt": "a", "messages": HI}, {"prompt": "a", "add_generation_prompt": True}):
            assert (await caller.http.post("/tokenize", json=body)).status_code == 400
        answer = await caller.http.post("/detokenize", json={"tokens": [BOS, *"한".encode()]})
        assert answer.json() == {"prompt": "<s>한"}
        assert (await caller.http.post("/detokenize", json={"tokens": [260]})).status_code == 400


async def test_the_documentation_lists_what_is_served() -> None:
    async with calling() as caller:
        schema = (await caller.http.get("/openapi.json")).json()
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"):
            operation = schema["paths"][path]["post"]
            assert "422" not in operation["responses"]
            assert {"200", "400", "429", "503"} <= set(operation["responses"])
            body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            for example in schema["components"]["schemas"][body]["examples"]:
                caller.engine.limits = replace(LIMITS, max_context=2048)
                assert (await caller.http.post(path, json=example)).status_code == 200
        properties = schema["components"]["schemas"]["ChatBody"]["properties"]
        assert all("description" in properties[name] for name in properties if name != "messages")
        assert "HTTPValidationError" not in schema["components"]["schemas"]
        assert (await caller.http.get("/docs")).status_code == 200
        assert "text/html" in (await caller.http.get("/")).headers["content-type"]


async def test_every_body_has_an_example() -> None:
    async with calling() as caller:
        schema = (await caller.http.get("/openapi.json")).json()
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                if "requestBody" in operation:
                    (content,) = operation["requestBody"]["content"].values()
                    body = schema["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
                    assert body["examples"], path
        for path, body in (("/tokenize", "TokenizeBody"), ("/detokenize", "DetokenizeBody")):
            for example in schema["components"]["schemas"][body]["examples"]:
                assert (await caller.http.post(path, json=example)).status_code == 200


async def test_every_way_of_choosing_a_token_has_an_example_that_is_answered() -> None:
    """Each beside nothing but what it goes with."""
    beside = {name: {"use_beam_search": True} for name in ("length_penalty", "early_stopping")}
    own = ("n", "min_tokens", "use_beam_search", *beside, "allowed_token_ids", "bad_words")
    routes = {
        "/v1/completions": (CompletionBody, {"prompt": "a"}),
        "/v1/chat/completions": (ChatBody, {"messages": HI}),
    }
    async with calling() as caller:
        for path, (body, needed) in routes.items():
            names = [*Sampling.model_fields, *own, *(["best_of"] if body is CompletionBody else [])]
            for name in names:
                for example in body.model_fields[name].examples or pytest.fail(f"{name} has no example"):
                    fields = needed | beside.get(name, {}) | {name: example}
                    assert (await caller.http.post(path, json=fields)).status_code == 200, name


async def test_the_tokenizer_tells_of_itself_before_the_model_is_loaded_too() -> None:
    expected = {
        "tokenizer_class": "FakeTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": None,
        "unk_token": "<s>",
        "additional_special_tokens": ["</s>", "<s>"],
        "chat_template": "{{ messages }}",
        "vocab_size": FakeTokenizer.vocab_size,
    }
    async with calling() as caller:
        answer = (await caller.http.get("/tokenizer_info")).json()
        assert answer == expected | {"model_max_length": LIMITS.capacity}
        caller.engine.state = EngineHealth("starting", "loading")
        answer = (await caller.http.get("/tokenizer_info")).json()
        assert answer == expected | {"model_max_length": None}
