"""Beam search is that of transformers, token for token, on tiny models and on the default one."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from model.checkpoint.source import open_checkpoint
from model.loading.load import load_runner
from model.runner import ModelRunner
from model.runner_config import RunnerConfig
from model.sampling_params import SamplingParams
from service.engine.core import EngineCore
from service.engine.messages import Beam, BeamSearch, EngineRequest, Submit
from service.text.tokenizer import load_tokenizer
from tests.tiny import TINY_MODELS, TinyDecoder, random_tokens, save

CLOSE = 1e-4
"""Sums of log-probabilities closer than this may be ranked either way: the order of additions moves them by as much."""


def searched(
    core: EngineCore, prompts: Sequence[list[int]], search: BeamSearch, stops: tuple[int, ...], max_tokens: int
) -> list[Sequence[Beam]]:
    """All prompts at the same time."""
    params = SamplingParams(
        max_tokens=max_tokens, temperature=0.0, stop_token_ids=stops, logprobs=search.top(len(stops))
    )
    for id, prompt in enumerate(prompts):
        core.submit(Submit(id, EngineRequest(prompt, params, beams=search)))
    found: dict[int, Sequence[Beam]] = {}
    while report := core.step():
        found |= {delta.id: delta.beams for delta in report.deltas}
    core.check()
    return [found[id] for id in range(len(prompts))]


@torch.inference_mode()
def by_transformers(
    model: Any, prompt: list[int], search: BeamSearch, stops: tuple[int, ...], max_tokens: int
) -> list[tuple[list[int], float]]:
    """Token ids and scores, the best first."""
    config = GenerationConfig(
        num_beams=search.width,
        num_return_sequences=search.count,
        length_penalty=search.length_penalty,
        early_stopping=search.early_stopping,
        max_new_tokens=max_tokens,
        eos_token_id=[*stops] or None,
        pad_token_id=0,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = model.generate(torch.tensor([prompt]), generation_config=config)
    rows = [row[len(prompt) :] for row in found.sequences.tolist()]
    ends = [next((place for place, token in enumerate(row) if token in stops), len(row) - 1) for row in rows]
    return [
        (row[: end + 1], score) for row, end, score in zip(rows, ends, found.sequences_scores.tolist(), strict=True)
    ]


def assert_same(found: Sequence[Beam], expected: Sequence[tuple[list[int], float]]) -> None:
    assert [beam.score for beam in found] == pytest.approx([score for _, score in expected], rel=1e-5, abs=CLOSE)
    scores = [score for _, score in expected]
    if all(first - second > CLOSE for first, second in pairwise(scores)):
        assert [beam.tokens for beam in found] == [tokens for tokens, _ in expected]
    else:
        assert sorted(beam.tokens for beam in found) == sorted(tokens for tokens, _ in expected)


SEARCHES = [
    BeamSearch(2, 1),
    BeamSearch(4, 4),
    BeamSearch(4, 4, length_penalty=0.0, early_stopping="never"),
    BeamSearch(4, 3, length_penalty=2.0, early_stopping="never"),
    BeamSearch(5, 5, length_penalty=-1.0),
    BeamSearch(6, 6, early_stopping=True),
]


@pytest.mark.parametrize("stops", [(), (5,), tuple(range(0, 97, 7))])
def test_a_tiny_model(stops: tuple[int, ...], tmp_path: Path) -> None:
    model = TINY_MODELS["llama"].build()
    model.generation_config.eos_token_id = None
    tiny = TinyDecoder(save(model, tmp_path))
    core = EngineCore(ModelRunner(tiny.decoder, tiny._cache, 64), token_budget=32, max_running=8)
    prompts = [random_tokens(count, seed=count) for count in (1, 7)]
    for search in SEARCHES:
        for prompt, found in zip(prompts, searched(core, prompts, search, stops, 12), strict=True):
            assert_same(found, by_transformers(model, prompt, search, stops, 12))


@pytest.fixture(scope="module")
def default_engine(smollm2: Path) -> EngineCore:
    config = RunnerConfig(model=str(smollm2), dtype="float32", backend="reference", cache_memory=2**27, block_size=16)
    return EngineCore(load_runner(config), token_budget=96, max_running=16)


@pytest.mark.parametrize("search", [BeamSearch(2, 2), BeamSearch(4, 4)])
def test_the_default_model(
    search: BeamSearch, smollm2: Path, default_engine: EngineCore, transformers_smollm2: Any
) -> None:
    tokenizer = load_tokenizer(open_checkpoint(smollm2).tokenizer)
    texts = ["The capital of France is", "def fibonacci(n):\n    ", "서울에서 부산까지 기차로"]
    prompts = [tokenizer.encode(text, add_special_tokens=True, parse_special=True) for text in texts]
    stops = tuple(tokenizer.eos_token_ids)
    for prompt, found in zip(prompts, searched(default_engine, prompts, search, stops, 8), strict=True):
        assert_same(found, by_transformers(transformers_smollm2, prompt, search, stops, 8))
