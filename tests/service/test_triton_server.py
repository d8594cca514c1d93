"""The whole server on the Triton kernels: token for token what it gives on the reference backend."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.byte_tokenizer import save_byte_tokenizer
from tests.service.servers import PATIENCE, serving
from tests.tiny import LLAMA_LIKE, TinyModel, save

ROOT = Path(__file__).parents[2]
TOKENS = 8
SHARED = "a system prompt that several requests share, so that its blocks are found in the prefix cache "
REQUESTS: list[dict[str, Any]] = [
    {"prompt": "one", "temperature": 0},
    {"prompt": SHARED + "first", "temperature": 0, "logprobs": 3},
    {"prompt": SHARED + "second", "temperature": 0.8, "seed": 1},
    {"prompt": SHARED * 2, "temperature": 1.5, "top_k": 20, "seed": 2},
    {"prompt": "two", "temperature": 1.0, "top_p": 0.7, "seed": 3, "logprobs": 1},
    {"prompt": "three", "temperature": 1.0, "min_p": 0.1, "top_k": 50, "top_p": 0.9, "seed": 4},
    {"prompt": "four", "temperature": 0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"prompt": "five", "temperature": 0, "logit_bias": {"65": 30.0}, "min_tokens": 4},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer whose tokens are the 256 bytes."""
    folder = tmp_path_factory.mktemp("model")
    sizes = {"vocab_size": 300, "num_hidden_layers": 2, "max_position_embeddings": 512}
    save(TinyModel("LlamaForCausalLM", {**LLAMA_LIKE, **sizes}).build(), folder)
    save_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def expected(model: Path) -> Iterator[list[dict[str, Any]]]:
    """The reference backend's answers, one request at a time."""
    with serving(str(model), "--backend", "reference", "--dtype", "float32", "--device", "cpu") as (url, _):
        yield [ask(url, request) for request in REQUESTS]


def test_triton_answers_as_the_reference_does(
    model: Path, expected: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests wait for others, and long prompts are read in chunks beside tokens that are decoded."""
    flags = ["--token-budget", "64", "--max-running", "3"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":  # In Triton's interpreter.
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests/service/interpreting"), str(ROOT)]))
    with (
        serving(str(model), "--backend", "triton", "--dtype", "float32", "--device", device, *flags) as (url, _),
        ThreadPoolExecutor(len(REQUESTS)) as clients,
    ):
        answers = list(clients.map(lambda request: ask(url, request), REQUESTS))
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer["token_ids"] == wanted["token_ids"]
        assert answer["text"] == wanted["text"]
        if wanted["logprobs"] is not None:
            torch.testing.assert_close(
                torch.tensor(answer["logprobs"]["token_logprobs"]),
                torch.tensor(wanted["logprobs"]["token_logprobs"]),
                rtol=1e-4,
                atol=1e-4,
            )


def ask(url: str, request: dict[str, Any]) -> dict[str, Any]:
    body = {"max_tokens": TOKENS, "ignore_eos": True, "return_token_ids": True, **request}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    assert len(choice["token_ids"]) == TOKENS
    return choice
