"""Scores and rankings through the API: their forms, what they ask the engine, and what they refuse."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from model.sampling_params import SamplingParams
from model.token_logprobs import TokenLogprobs
from service.engine.messages import Delta
from tests.service.api.fakes import TIMES, FakeClient, calling

WORDS = {"yes": "y", "no": "n"}
"""The fake tokenizer has a token for each letter."""
SHORT = {"system": "", "template": "{query}{document}"}
"""Fields that make the prompt of a pair little more than the pair."""


class Judge(FakeClient):
    """Says whichever token it may, with log-probabilities of yes that grow by 1 from pair to pair, and -1 of no."""

    def script(self, params: SamplingParams) -> Iterator[Delta]:
        assert params.allowed is not None
        [token] = [token for token in range(8 * len(params.allowed)) if params.allowed[token // 8] >> token % 8 & 1]
        logprob = -5.0 + len(self.streams) // 2 if token == ord("y") else -1.0
        return iter([Delta(0, [token], [TokenLogprobs(logprob, [], [], 1)], "length", times=TIMES)])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("texts", "pairs"),
    [
        ({"queries": "q", "documents": ["a", "b"]}, ["qa", "qb"]),
        ({"queries": ["q", "r"], "documents": ["a", "b"]}, ["qa", "rb"]),
        ({"text_1": "q", "text_2": "a"}, ["qa"]),
        ({"text_1": ["q"], "text_2": ["a", "b", "c"]}, ["qa", "qb", "qc"]),
    ],
)
async def test_scores_come_in_the_order_of_the_pairs(texts: dict[str, Any], pairs: list[str]) -> None:
    async with calling(engine=Judge()) as caller:
        asked = {**WORDS, **texts, "template": "{query}{document}", "system": ""}
        answer = (await caller.http.post("/v1/score", json=asked)).json()
        assert [each["index"] for each in answer["data"]] == [*range(len(pairs))]
        assert [each["score"] for each in answer["data"]] == pytest.approx(
            [sigmoid(-5.0 + place + 1.0) for place in range(len(pairs))]
        )
        assert answer["object"] == "list"
        prompts = [f"user:{pair}|assistant:" for pair in pairs]
        given = [bytes(stream.prompt).decode().split("|", 1)[1] for stream in caller.engine.streams]
        assert given == [prompt for prompt in prompts for _ in range(2)]
        assert answer["usage"]["prompt_tokens"] == sum(len(stream.prompt) for stream in caller.engine.streams) // 2
        for stream in caller.engine.streams:
            assert (stream.params.max_tokens, stream.params.temperature, stream.params.logprobs) == (1, 0.0, 0)
        raw = (await caller.http.post("/score", json=asked | {"use_activation": False})).json()
        assert all(isinstance(each["score"], float) for each in raw["data"])


async def test_the_question_is_the_models_own_form_and_a_place_in_a_text_stays() -> None:
    async with calling(engine=Judge()) as caller:
        asked = {**WORDS, "queries": "{document}", "documents": "</s>", "instruction": "Fit?"}
        assert (await caller.http.post("/v1/score", json=asked)).status_code == 200
        text = bytes(caller.engine.streams[0].prompt).decode()
        assert text.startswith("enable_thinking=False|system:Judge whether")
        assert text.endswith("|user:<Instruct>: Fit?\n<Query>: {document}\n<Document>: </s>|assistant:")


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_a_ranking_has_the_best_first(path: str) -> None:
    async with calling(engine=Judge()) as caller:
        asked = {**WORDS, "system": "", "query": "q", "documents": ["a", {"text": "b"}, "c"]}
        answer = (await caller.http.post(path, json=asked)).json()
        assert [each["index"] for each in answer["results"]] == [2, 1, 0]
        assert [each["document"] for each in answer["results"]] == [{"text": text} for text in "cba"]
        scores = [each["relevance_score"] for each in answer["results"]]
        assert scores == sorted(scores, reverse=True)
        assert answer["usage"]["total_tokens"] > 0
    async with calling(engine=Judge()) as caller:
        few = asked | {"top_n": 1, "return_documents": False}
        answer = (await caller.http.post(path, json=few)).json()
        assert [each["index"] for each in answer["results"]] == [2]
        assert set(answer["results"][0]) == {"index", "relevance_score"}
        everything = (await caller.http.post(path, json=asked | {"top_n": 0})).json()
        assert len(everything["results"]) == 3


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/score", {}, "queries"),
        ("/v1/score", {"queries": "a"}, "documents"),
        ("/v1/score", {"queries": "a", "text_1": "a", "documents": "b"}, "queries"),
        ("/v1/score", {"queries": ["a", "b"], "documents": "c"}, "queries"),
        ("/v1/score", {"queries": "a", "documents": []}, "documents"),
        ("/v1/score", {"queries": "a", "documents": [1]}, "documents"),
        ("/v1/score", {"queries": "a", "documents": ["a"] * 65}, "documents"),
        ("/v1/score", {"queries": "a", "documents": "b", "yes": "yes"}, "yes"),
        ("/v1/score", {"queries": "a", "documents": "b", "no": "y"}, "no"),
        ("/v1/score", {"queries": "a", "documents": "b", "template": "{query}"}, "template"),
        ("/v1/score", {"queries": "a", "documents": "b", "template": "{query}{document}{query}"}, "template"),
        ("/v1/score", {"queries": "a", "documents": "b" * 256}, "documents"),
        ("/v1/score", {"queries": "a" * 256, "documents": "b"}, "queries"),
        ("/v1/score", {"text_1": "a" * 256, "text_2": "b"}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": "b" * 256}, "text_2"),
        ("/v1/score", {**SHORT, "queries": ["a", "a" * 256], "documents": ["b" * 30, "b"]}, "queries"),
        ("/v1/score", {"queries": "a", "documents": "b", "instruction": "c" * 256}, "instruction"),
        ("/v1/score", {"queries": "a", "documents": "b", "system": "c" * 256}, "system"),
        ("/v1/score", {"queries": "a", "documents": "b", "template": "c" * 256 + "{query}{document}"}, "template"),
        ("/v1/score", {"queries": "a" * 20_000, "documents": ["b"] * 4}, "queries"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": "c"}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": ["a"] * 65}, "text_2"),
        ("/v1/score", {"queries": "a", "documents": "b", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ("/v1/score", {"queries": "a", "documents": "b", "extra": 5}, "extra"),
        ("/v1/score", {"queries": "a", "documents": "b", "model": "another"}, "model"),
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a"}, "documents"),
        ("/v1/rerank", {"query": "a" * 256, "documents": ["a", "b"]}, "query"),
        ("/v1/rerank", {"query": "a" * 20_000, "documents": ["b"] * 4}, "query"),
        ("/v1/rerank", {"query": "a", "documents": ["a", {"text": "b" * 256}]}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": -1}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "max_tokens_per_doc": 5}, "max_tokens_per_doc"),
        ("/v1/rerank", {"query": "a", "documents": [{"text": "a", "id": 1}]}, "documents[0].id"),
    ],
)
async def test_what_does_not_fit_is_refused_by_name(path: str, fields: dict[str, Any], param: str) -> None:
    async with calling(engine=Judge()) as caller:
        answer = await caller.http.post(path, json={**WORDS, **fields})
        assert answer.status_code in (400, 404)
        assert answer.json()["error"]["param"] == param, answer.text
        assert not caller.engine.streams


@pytest.mark.parametrize(
    ("settings", "most"),
    [({}, 64), ({"max_prompts": 99}, 64), ({"max_prompts": 9}, 9), ({"max_choices": 11}, 5)],
    ids=str,
)
async def test_pairs_are_as_many_as_the_settings_say(settings: dict[str, int], most: int) -> None:
    """A pair is a prompt by max_prompts, and two choices by max_choices."""
    async with calling(engine=Judge(), max_waiting=512, **settings) as caller:
        for pairs, status in ((most, 200), (most + 1, 400)):
            body = {**WORDS, "system": "", "template": "{query}{document}", "queries": "a", "documents": ["b"] * pairs}
            answer = await caller.http.post("/v1/score", json=body)
            assert answer.status_code == status, answer.text
        assert f"{most + 1} texts are more than the {most}" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/score", "/v1/rerank"])
async def test_the_tokens_of_all_pairs_are_bounded(path: str) -> None:
    query = {"queries" if path == "/v1/score" else "query": "a"}
    body = {**WORDS, **query, "system": "", "template": "{query}{document}", "documents": ["a" * 20, "b" * 20]}
    async with calling(engine=Judge()) as caller:
        tokens = (await caller.http.post(path, json=body)).json()["usage"]["prompt_tokens"]
    for bound, status in ((tokens, 200), (tokens - 1, 400)):
        async with calling(engine=Judge(), max_request_tokens=bound) as caller:
            answer = await caller.http.post(path, json=body)
            assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == "documents"
    assert f"{tokens} tokens of all prompts are more than the {tokens - 1}" in error["message"]
    assert not caller.engine.streams


async def test_a_model_without_a_template_judges_nothing() -> None:
    async with calling(None, engine=Judge()) as caller:
        answer = await caller.http.post("/v1/score", json={**WORDS, "queries": "a", "documents": "b"})
        assert answer.status_code == 400
        assert "chat template" in answer.json()["error"]["message"]
