"""Every family against transformers in float32: what it computes must not depend on how a prompt is cut up."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint.checkpoint import Checkpoint
from tests.tiny import TINY_MODELS, TinyDecoder, random_tokens, reference_logits, save

PROMPT = 40
"""Longer than every window, and than the contexts that scaled ropes were trained on."""


@pytest.fixture(scope="module", params=TINY_MODELS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Checkpoint]:
    model = TINY_MODELS[request.param].build()
    return model, save(model, tmp_path_factory.mktemp(request.param))


def assert_equal(ours: Tensor, reference: Tensor) -> None:
    assert reference.std() > 0.1, "logits this flat would hide errors"
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=0)


def test_whole_prompt(tiny: tuple[Any, Checkpoint]) -> None:
    model, checkpoint = tiny
    tokens = random_tokens(PROMPT)
    assert_equal(TinyDecoder(checkpoint).step({0: tokens})[0], reference_logits(model, tokens))


def test_chunked_prefill(tiny: tuple[Any, Checkpoint]) -> None:
    model, checkpoint = tiny
    tokens = random_tokens(PROMPT)
    decoder = TinyDecoder(checkpoint)
    chunks = [decoder.step({0: tokens[start:end]})[0] for start, end in ((0, 5), (5, 6), (6, 23), (23, PROMPT))]
    assert_equal(torch.cat(chunks), reference_logits(model, tokens))


def test_step_by_step(tiny: tuple[Any, Checkpoint]) -> None:
    model, checkpoint = tiny
    tokens = random_tokens(PROMPT)
    decoder = TinyDecoder(checkpoint)
    steps = [decoder.step({0: [token]})[0] for token in tokens]
    assert_equal(torch.cat(steps), reference_logits(model, tokens))


def test_ragged_batch(tiny: tuple[Any, Checkpoint]) -> None:
    """Sequences join while others decode, as in continuous batching."""
    model, checkpoint = tiny
    texts = {sequence: random_tokens(PROMPT, seed=sequence) for sequence in range(4)}
    spans = [{0: (0, 30)}, {0: (30, 31), 1: (0, 17)}, {0: (31, 32), 1: (17, 18), 2: (0, 9), 3: (0, 1)}]
    spans += [{0: (32, PROMPT), 1: (18, 19), 2: (9, PROMPT), 3: (1, 2)}]
    decoder = TinyDecoder(checkpoint)
    parts: dict[int, list[Tensor]] = {sequence: [] for sequence in texts}
    for span in spans:
        work = {sequence: texts[sequence][start:end] for sequence, (start, end) in span.items()}
        for sequence, logits in decoder.step(work).items():
            parts[sequence].append(logits)
    for sequence, pieces in parts.items():
        ours = torch.cat(pieces)
        assert_equal(ours, reference_logits(model, texts[sequence])[: len(ours)])
