"""The default model in float32 against transformers on the same dequantised weights, through the whole engine."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint.source import open_checkpoint
from model.loading.load import load_runner
from model.runner_config import RunnerConfig
from model.sampling_params import SamplingParams
from service.engine.core import EngineCore
from service.engine.messages import EngineRequest, Submit
from service.text.tokenizer import VocabularyTokenizer, load_tokenizer

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "Water boils at a temperature of",
    "The three laws of thermodynamics state that",
    "In 1969, Neil Armstrong",
    "To make a good cup of coffee, first",
    "Q: What is 12 + 30?\nA:",
    "Shakespeare wrote many plays, among them",
    "The difference between a list and a tuple in Python is",
    "Dear Sir or Madam,\n\nI am writing to",
    "대한민국의 수도는",
    "안녕하세요, 오늘 날씨가",
    "한국어는 아름다운 언어입니다. 세종대왕은",
    "서울에서 부산까지 기차로",
    "def fibonacci(n):\n    ",
    "import numpy as np\n\ndef softmax(x):\n",
    "for (int i = 0; i < n; i++) {\n    ",
    "SELECT name, count(*) FROM users WHERE",
    '{"name": "Ada", "born": 1815, "languages": [',
    "# Changelog\n\n## 1.2.0\n\n- ",
]
OUTPUT = 32
TIE = 1e-3
"""Two logits of the reference closer than this may swap: summation order alone moves them by as much."""


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> VocabularyTokenizer:
    return load_tokenizer(open_checkpoint(smollm2).tokenizer)


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> EngineCore:
    config = RunnerConfig(model=str(smollm2), dtype="float32", backend="reference", cache_memory=2**28, block_size=16)
    return EngineCore(load_runner(config), token_budget=96, max_running=32)


def greedy(engine: EngineCore, prompts: list[list[int]]) -> list[list[int]]:
    outputs: dict[int, list[int]] = {index: [] for index in range(len(prompts))}
    for index, prompt in enumerate(prompts):
        engine.submit(Submit(index, EngineRequest(prompt, SamplingParams(temperature=0, max_tokens=OUTPUT))))
    while report := engine.step():
        for delta in report.deltas:
            assert delta.error is None
            outputs[delta.id] += delta.tokens
    return list(outputs.values())


@torch.inference_mode()
def test_greedy_tokens_equal_transformers(
    engine: EngineCore, transformers_smollm2: Any, tokenizer: VocabularyTokenizer
) -> None:
    """All prompts in one batch, chunked by the budget; each output is fed to the reference as a whole.

    If every token is the reference's choice after those before it, then its own greedy output is the same.
    """
    prompts = [tokenizer.encode(text, add_special_tokens=True, parse_special=True) for text in PROMPTS]
    for text, prompt, output in zip(PROMPTS, prompts, greedy(engine, prompts), strict=True):
        assert len(output) == OUTPUT
        logits = transformers_smollm2(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
        top = logits.topk(2)
        for position, token in enumerate(output):
            first, second = top.values[position].tolist()
            tied = first - second < TIE and token in top.indices[position].tolist()
            assert token == top.indices[position, 0] or tied, (text, position, first - second)


def test_the_prefix_cache_changes_no_token(engine: EngineCore, tokenizer: VocabularyTokenizer) -> None:
    text = "The history of the printing press begins in Mainz, where Johannes Gutenberg around 1440 " * 3
    prompt = tokenizer.encode(text, add_special_tokens=True, parse_special=True)
    fresh = greedy(engine, [prompt])
    hits = engine.stats().totals.prefix_hits
    assert greedy(engine, [prompt]) == fresh
    assert engine.stats().totals.prefix_hits - hits == (len(prompt) - 1) // 16 * 16
