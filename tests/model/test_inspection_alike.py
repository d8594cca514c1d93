"""Attention, lens and distributions are transformers' own, however the engine came by a position.

A text is decoded, then read in chunks beside another, then found in the prefix cache, and then read as a whole.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint.source import open_checkpoint
from model.contract import Runner, Wanted
from model.inspection import Distribution, InspectionRequest
from model.loading.load import load_runner
from model.runner import ModelRunner
from model.runner_config import RunnerConfig
from model.sampling_params import SamplingParams
from service.engine.core import EngineCore
from service.text.tokenizer import load_tokenizer
from tests.model.test_extras import GREEDY, Expected, Found, by_transformers, check_inspection, run
from tests.tiny import TINY_MODELS, TinyDecoder, random_tokens, save

DECODED = 8
COMPANY = random_tokens(21, seed=1)


def everything(runner: Runner, positions: Sequence[int], *, generated: bool = False) -> Wanted:
    limits = runner.limits
    heads = [(layer, head) for layer in range(limits.layers) for head in range(limits.heads)]
    asked = InspectionRequest(
        positions=positions,
        generated=generated,
        heads=heads,
        stream=True,
        lens=2,
        distribution=3,
        settings=[SamplingParams(max_tokens=0)],
    )
    return Wanted(inspect=asked)


def check_distributions(found: Sequence[Distribution], expected: Expected, positions: Sequence[int]) -> None:
    assert [shown.position for shown in found] == [*positions]
    for shown in found:
        probabilities = expected.logprobs[shown.position].exp()
        raw = [stages[0] for stages in shown.probabilities]
        # A logit of 20 has an error of about 1e-5 in float32, and so has a probability in proportion to itself.
        assert raw == pytest.approx(probabilities[[*shown.candidates]].tolist(), rel=1e-4, abs=1e-6)
        assert max(raw) == pytest.approx(probabilities.max().item(), rel=1e-4)
        assert shown.stages[0].entropy == pytest.approx(torch.special.entr(probabilities).sum().item(), abs=1e-3)


def check_every_way(runner: Runner, model: Any, prompt: Sequence[int], block_size: int) -> None:
    core = EngineCore(runner, token_budget=8, max_running=4)
    drawing = SamplingParams(max_tokens=DECODED, temperature=0)
    beside = (COMPANY, SamplingParams(max_tokens=DECODED), Wanted())
    decoded, _ = run(core, (prompt, drawing, everything(runner, range(len(prompt) - 1), generated=True)), beside)
    text = [*prompt, *decoded.tokens]
    seen = range(len(text) - 1)
    expected = by_transformers(model, text)

    def check(found: Found, positions: Sequence[int]) -> None:
        check_inspection(found, expected, text, positions)
        check_distributions(found.distributions, expected, positions)

    check(decoded, seen)
    chunked, _ = run(core, (text, GREEDY, everything(runner, seen)), beside)
    assert len(chunked.inspections) > 2, "the text was to be read in chunks"
    check(chunked, seen)
    last = seen[-3:]
    (hit,) = run(core, (text, GREEDY, everything(runner, last)))
    assert hit.last is not None
    assert hit.last.cached_tokens == last[0] // block_size * block_size > 0
    check(hit, last)
    # A pool of its own, whose cache knows nothing of the text.
    (whole,) = run(EngineCore(runner, token_budget=64, max_running=4), (text, GREEDY, everything(runner, seen)))
    assert len(whole.inspections) == 1
    check(whole, seen)


@pytest.mark.parametrize("family", TINY_MODELS)
def test_a_position_looks_the_same_however_it_came_to_be(family: str, tmp_path: Path) -> None:
    model = TINY_MODELS[family].build()
    tiny = TinyDecoder(save(model, tmp_path))
    runner = ModelRunner(tiny.decoder, tiny._cache, 64)
    check_every_way(runner, model, random_tokens(12, seed=5), runner.limits.block_size)


def test_the_default_model_looks_the_same_however_its_positions_came_to_be(
    smollm2: Path, transformers_smollm2: Any
) -> None:
    config = RunnerConfig(model=str(smollm2), dtype="float32", backend="reference", cache_memory=2**27, block_size=8)
    tokenizer = load_tokenizer(open_checkpoint(smollm2).tokenizer)
    prompt = tokenizer.encode("Once upon a time, in a village by the sea,", add_special_tokens=True, parse_special=True)
    check_every_way(load_runner(config), transformers_smollm2, prompt, 8)
