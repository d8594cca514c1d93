"""Scores and rankings of a real server are those of transformers' logits; its own examples are answered."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from service.api.schemas.judgements import RerankBody, ScoreBody
from tests.byte_tokenizer import save_byte_tokenizer
from tests.service.servers import PATIENCE, serving
from tests.tiny import TINY_MODELS, reference_logits

YES, NO = 256, 257
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
QUERY, DOCUMENTS = "where is Paris?", ["In France.", "bread", "a river in Paris, yes"]


@pytest.fixture(scope="module")
def model() -> Any:
    tiny = TINY_MODELS["llama"]
    return replace(tiny, config={**tiny.config, "vocab_size": 300, "max_position_embeddings": 1024}).build()


@pytest.fixture(scope="module")
def url(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    save_byte_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    with serving(str(folder), "--backend", "reference", "--dtype", "float32") as (url, _):
        yield url


def post(url: str, path: str, **fields: Any) -> Any:
    answer = httpx.post(url + path, json=fields, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_scores_are_those_of_transformers(url: str, model: Any) -> None:
    fields: dict[str, Any] = {"queries": QUERY, "documents": DOCUMENTS}
    raw = [each["score"] for each in post(url, "/v1/score", **fields, use_activation=False)["data"]]
    expected = []
    for document in DOCUMENTS:
        body = ScoreBody(queries=QUERY, documents=document)
        text = body.template.format(instruction=body.instruction, query=QUERY, document=document)
        messages = [{"role": "system", "content": body.system}, {"role": "user", "content": text}]
        logits = reference_logits(model, post(url, "/tokenize", messages=messages)["tokens"])[-1]
        expected.append(float(logits[YES] - logits[NO]))
    assert raw == pytest.approx(expected, abs=1e-4)
    answer = post(url, "/v1/score", **fields)
    scores = [each["score"] for each in answer["data"]]
    assert scores == pytest.approx([1 / (1 + math.exp(-logit)) for logit in expected], abs=1e-5)
    assert answer["usage"]["prompt_tokens"] > 0
    ranking = post(url, "/v1/rerank", query=QUERY, documents=DOCUMENTS)["results"]
    assert [each["index"] for each in ranking] == sorted(range(3), key=lambda index: -expected[index])
    assert [each["relevance_score"] for each in ranking] == pytest.approx(sorted(scores, reverse=True), rel=1e-5)


def test_the_examples_of_the_documentation_are_answered(url: str) -> None:
    schema = httpx.get(f"{url}/openapi.json", timeout=PATIENCE).json()
    for path, body in (("/v1/score", ScoreBody), ("/v1/rerank", RerankBody)):
        sent = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert sent.endswith(body.__name__)
        for example in schema["components"]["schemas"][body.__name__]["examples"]:
            post(url, path, **example)
