"""The size of a decoder: the parameters of its parts are those that transformers counts in its modules."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.load import load_backend
from model.checkpoint.source import open_checkpoint
from model.families.reader import read_spec
from model.loading.weights import load_weights
from model.size import model_size
from tests.tiny import CPU, TINY_MODELS, save

PARTS = {
    "embedding": r"embed_tokens|word_embeddings|\bwte\b|\bwpe\b|embed_in|embed_positions",
    "head": r"\b(lm_head|embed_out)\b|^(\w+\.)*(norm|ln_f|final_layer_norm|final_layernorm)\.",
    "attention": r"attn|attention|input_layernorm|\bln_1\b",
    "feed_forward": r"mlp|feedforward|\bln_2\b|\bfc[12]\b",
}
"""The part of a parameter by its name in transformers; the first that fits."""


def counted(model: Any, *, post_norms: bool) -> dict[str, int]:
    """Parameters of each part as transformers has them; a tied one has one name alone."""
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        if "vision" in name or "multi_modal" in name:
            continue
        # The same name is that of the norm before the MLP, where attention's output has none of its own.
        name = name if post_norms else name.replace("post_attention_layernorm", "mlp_norm")
        part = next(part for part, words in PARTS.items() if re.search(words, name))
        counts[part] += parameter.numel()
    return counts


@pytest.mark.parametrize("family", TINY_MODELS)
def test_the_parameters_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = TINY_MODELS[family].build()
    checkpoint = save(model, tmp_path)
    spec = read_spec(checkpoint)
    # A backend that pads and packs what it is given.
    size = model_size(spec, load_weights(spec, checkpoint, load_backend(CPU, "cpu"), torch.float32, CPU))
    expected = counted(model, post_norms=spec.post_norms)
    assert {part: getattr(size, part) for part in PARTS} == expected
    assert size.parameters == sum(expected.values())
    assert (size.hidden_size, size.mlp_size) == (spec.hidden_size, spec.mlp_size)


def test_the_bytes_are_those_of_the_tensors(smollm2: Path) -> None:
    """A table that the output projection shares counts once; weights of four bits take less than a byte."""
    checkpoint = open_checkpoint(smollm2)
    spec = read_spec(checkpoint)
    size = model_size(spec, load_weights(spec, checkpoint, load_backend(CPU, "cpu"), torch.float32, CPU))
    assert size.parameters == 134_515_008
    assert size.head == spec.hidden_size
    assert 0.5 < size.weight_bytes / size.parameters < 0.8
