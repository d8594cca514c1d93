"""Every family against transformers in float32: what it computes must not depend on how a prompt is cut up."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from kernels.load import load_backend
from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.source import open_checkpoint
from model.families.reader import read_spec
from model.spec import LinearScaling, RopeSpec
from tests.tiny import CPU, TINY_MODELS, TinyDecoder, random_tokens, reference_logits, save

PROMPT = 40
"""Longer than every window, and than the contexts that scaled ropes were trained on."""


@pytest.fixture(scope="module", params=TINY_MODELS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Checkpoint]:
    model = TINY_MODELS[request.param].build()
    return model, save(model, tmp_path_factory.mktemp(request.param))


def assert_equal(ours: Tensor, reference: Tensor) -> None:
    assert reference.std() > 0.1, "logits this flat would hide errors"
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=0)


def test_gemma_files_leave_out_what_transformers_assumes(tmp_path: Path) -> None:
    """The 4B's own text_config has no more than this."""
    sizes = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    text = {**sizes, "model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    reference = transformers.Gemma3TextConfig(**{key: value for key, value in text.items() if key != "model_type"})
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = read_spec(open_checkpoint(tmp_path, weights=False))
    assert spec.vocab_size == reference.vocab_size
    assert (spec.heads, spec.kv_heads) == (reference.num_attention_heads, reference.num_key_value_heads)
    assert spec.head_dim == reference.head_dim
    assert spec.attention_scale == reference.query_pre_attn_scalar**-0.5
    assert spec.max_context == reference.max_position_embeddings
    assert spec.norm_eps == reference.rms_norm_eps
    assert spec.tied_embeddings
    kinds = ["full_attention" if layer.window is None else "sliding_attention" for layer in spec.layers]
    assert kinds == reference.layer_types
    assert spec.layers[5].rope == RopeSpec(1e6, 256, LinearScaling(8.0))
    assert spec.layers[0].rope == RopeSpec(1e4, 256)


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


def test_compiled_for_the_cpu(tiny: tuple[Any, Checkpoint]) -> None:
    """Its projections of dense weights are float32's: only sums come in another order, and exponentials."""
    model, checkpoint = tiny
    decoder = TinyDecoder(checkpoint, load_backend(CPU, "cpu"))
    tokens = random_tokens(PROMPT)
    parts = [decoder.step({0: tokens[start:end]})[0] for start, end in ((0, 30), (30, 31), (31, PROMPT))]
    assert_equal(torch.cat(parts), reference_logits(model, tokens))
