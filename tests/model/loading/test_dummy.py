"""Random weights have the shapes that a spec asks for and sizes that a model's have."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.load import load_backend
from model.batch import batch_layout
from model.contract import Chunk
from model.families.reader import read_spec
from model.loading.dummy import dummy_weights
from model.loading.weights import load_weights
from model.spec import DecoderSpec
from tests.dummies import CPU, LEARNED, SCALED, SMALL, empty_cache, make_decoder
from tests.tiny import TINY_MODELS, save

BACKEND = load_backend(CPU, "reference")


def shapes(value: object) -> object:
    """Of everything in a tree of weights."""
    match value:
        case Tensor():
            return tuple(value.shape), value.dtype
        case list():
            return [shapes(item) for item in value]
        case _ if hasattr(value, "__dataclass_fields__"):
            return {name: shapes(getattr(value, name)) for name in value.__dataclass_fields__}
        case _:
            return value


@pytest.mark.parametrize("case", ["llama", "llama-tied", "qwen2", "qwen3", "gemma3", "phi3", "gpt2", "bloom"])
def test_they_have_the_shapes_of_the_models_own(case: str, tmp_path: Path) -> None:
    checkpoint = save(TINY_MODELS[case].build(), tmp_path)
    spec = read_spec(checkpoint)
    own = load_weights(spec, checkpoint, BACKEND, torch.bfloat16, CPU)
    assert shapes(dummy_weights(spec, BACKEND, torch.bfloat16, CPU)) == shapes(own)


@pytest.mark.parametrize("spec", [SMALL, replace(SMALL, tied_embeddings=True), SCALED, LEARNED], ids=lambda s: s.family)
def test_they_keep_numbers_in_range(spec: DecoderSpec) -> None:
    decoder = make_decoder(spec)
    layout = batch_layout([Chunk([0] * 32, 0, range(8))], 4, CPU)
    hidden = decoder.forward(torch.arange(32), layout, empty_cache(decoder))
    assert 0.3 < float(hidden.pow(2).mean().sqrt()) < 3
    assert 0.1 < float(decoder.logits(hidden).std()) < 10
    assert float(decoder.weights.final_norm.weight.mean()) == pytest.approx(1, abs=0.05)


def test_they_are_the_same_every_time() -> None:
    assert torch.equal(make_decoder().weights.layers[1].up.weight, make_decoder().weights.layers[1].up.weight)
