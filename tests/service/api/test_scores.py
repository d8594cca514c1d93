"""Prompts with log-probabilities, and embeddings, through the API."""

import base64
import math
import struct
from typing import Any

import pytest

from model.array import Array
from tests.service.api.fakes import EMBEDDING, HI, Caller, calling, events


async def scored(caller: Caller, **fields: Any) -> list[dict[str, Any]]:
    """The first choice of a whole answer, and the choices of the same one streamed."""
    whole = await caller.complete(**fields)
    assert whole.status_code == 200, whole.text
    streamed = events(await caller.complete(stream=True, **fields))
    return [whole.json()["choices"][0], *(event["choices"][0] for event in streamed if event)]


@pytest.mark.parametrize("max_tokens", [0, 3])
async def test_an_echo_with_log_probabilities(max_tokens: int) -> None:
    async with calling() as caller:
        whole, *pieces = await scored(caller, prompt="abc", echo=True, logprobs=1, max_tokens=max_tokens)
        logprobs = whole["logprobs"]
        assert whole["text"] == "abc" + "Hel"[:max_tokens]
        assert whole["finish_reason"] == "length"
        assert "".join(logprobs["tokens"]).endswith(whole["text"])
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        assert all(isinstance(entry, float) for entry in logprobs["token_logprobs"][1:])
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert whole["text"].startswith(token, offset) or token not in whole["text"]
        assert "".join(piece["text"] for piece in pieces) == whole["text"]
        for name in logprobs:
            assert [entry for piece in pieces for entry in piece["logprobs"][name]] == logprobs[name]


async def test_prompt_logprobs_name_each_token_and_the_likeliest() -> None:
    async with calling() as caller:
        fields: dict[str, Any] = {
            "prompt": [65, 66, 67],
            "prompt_logprobs": 2,
            "max_tokens": 1,
            "return_token_ids": True,
        }
        whole, *pieces = await scored(caller, **fields)
        first, second, third = whole["prompt_logprobs"]
        assert first is None
        assert second == {
            "66": {"logprob": -0.5, "rank": 1, "decoded_token": "B"},
            "67": {"logprob": -1.5, "rank": 2, "decoded_token": "C"},
        }
        assert list(third) == ["67", "68"]
        assert [piece["prompt_logprobs"] for piece in pieces if "prompt_logprobs" in piece] == [
            whole["prompt_logprobs"]
        ]
        chat = (await caller.chat(prompt_logprobs=0, max_tokens=1, n=2)).json()
        assert len(chat["prompt_logprobs"]) == len(caller.engine.streams[-1].prompt)
        streamed = events(await caller.chat(prompt_logprobs=0, max_tokens=1, stream=True))
        assert [event["prompt_logprobs"] for event in streamed if event and "prompt_logprobs" in event] == [
            chat["prompt_logprobs"]
        ]


async def test_nothing_is_wanted_of_a_prompt_unasked() -> None:
    async with calling() as caller:
        answer = (await caller.complete(logprobs=2)).json()
        assert "prompt_logprobs" not in answer["choices"][0]
        assert "prompt_logprobs" not in (await caller.chat()).json()
        assert all(stream.wanted.prompt_logprobs is None for stream in caller.engine.streams)


async def embed(caller: Caller, **fields: Any) -> dict[str, Any]:
    answer = await caller.http.post("/v1/embeddings", json={"input": "hi"} | fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_embeddings_are_pooled_cut_and_scaled() -> None:
    """The engine's parts are twice (3, 0, 4, 0)."""
    async with calling() as caller:
        body = await embed(caller, input=["hi", "you"])
        assert [entry["index"] for entry in body["data"]] == [0, 1]
        assert body["data"][0]["embedding"] == pytest.approx([0.6, 0, 0.8, 0])
        tokens = sum(len(stream.prompt) for stream in caller.engine.streams)
        assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
        (entry,) = (await embed(caller, input=[1, 2], normalize=False))["data"]
        assert entry["embedding"] == [3, 0, 4, 0]
        (entry,) = (await embed(caller, normalize=False, pooling="last"))["data"]
        assert entry["embedding"] == [6, 0, 8, 0]
        (entry,) = (await embed(caller, dimensions=2))["data"]
        assert entry["embedding"] == [1, 0]
        (entry,) = (await embed(caller, encoding_format="base64"))["data"]
        assert struct.unpack("<4f", base64.b64decode(entry["embedding"])) == pytest.approx((0.6, 0, 0.8, 0))
        assert len(EMBEDDING.data) == 16


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "", "add_special_tokens": False}, "input"),
        ({"input": []}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": "x" * 300}, "input"),
        ({"input": ["a"] * 9}, "input"),
        ({"dimensions": 5}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"pooling": "max"}, "pooling"),
        ({"messages": HI}, "messages"),
        ({"temperature": 1.5}, "temperature"),
        ({"nobody_knows": 1}, "nobody_knows"),
    ],
)
async def test_what_cannot_be_embedded_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    async with calling() as caller:
        answer = await caller.http.post("/v1/embeddings", json={"input": "hi"} | fields)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
        assert caller.admission.open == 0


async def test_a_gone_engine_is_a_503() -> None:
    async with calling() as caller:
        caller.engine.stop()
        answer = await caller.http.post("/v1/embeddings", json={"input": "hi"})
        assert answer.status_code == 503


async def test_an_embedding_that_is_not_finite_is_an_error() -> None:
    async with calling() as caller:
        caller.engine.embedding = Array((4,), struct.pack("<4f", 3, 0, math.nan, 0))
        answer = await caller.http.post("/v1/embeddings", json={"input": "hi"})
        assert answer.status_code == 500
        assert "finite" in answer.json()["error"]["message"]
