"""GGUF's quantised weights, kept and dequantised: two forms of one file."""

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from torch import Tensor

from kernels.backend import QuantizedWeight
from model.checkpoint.source import open_checkpoint
from tests.tiny import LLAMA_LIKE, QuantizedBackend, TinyDecoder, TinyModel, random_tokens
from tests.tiny_gguf import write_gguf

WIDE = {**LLAMA_LIKE, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
"""K-quants have blocks of 256."""
MODELS = {
    "llama": ("llama", TinyModel("LlamaForCausalLM", WIDE)),
    "llama-tied": ("llama", TinyModel("LlamaForCausalLM", {**WIDE, "tie_word_embeddings": True})),
    "qwen2": ("qwen2", TinyModel("Qwen2ForCausalLM", WIDE)),
    "phi3": ("phi3", TinyModel("Phi3ForCausalLM", {**WIDE, "sliding_window": 9})),
    "gpt2": ("gpt2", TinyModel("GPT2LMHeadModel", {"vocab_size": 97, "n_embd": 256, "n_layer": 2, "n_head": 4})),
}
ROUNDED = {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
"""Their groups' scales are products, which half precision rounds."""


def written(folder: Path, case: str, **types: str) -> Path:
    """`types`: the type of every matrix that has the keyword in its name."""
    architecture, tiny = MODELS[case]
    kinds = {f"*{pattern}*": GGMLQuantizationType[name] for pattern, name in types.items()}
    write_gguf(tiny.build(), folder / "model.gguf", architecture, types=kinds)
    return folder / "model.gguf"


def forms(path: Path) -> tuple[TinyDecoder, TinyDecoder]:
    """The file's model with its weights kept as they are, and dequantised."""
    checkpoint = open_checkpoint(path)
    return TinyDecoder(checkpoint, QuantizedBackend()), TinyDecoder(checkpoint)


def difference(kept: TinyDecoder, dense: TinyDecoder) -> float:
    """Of the logits of both: the mean, in units of the logits' own spread."""
    tokens = random_tokens(23)
    expected = dense.step({0: tokens})[0]
    return float((kept.step({0: tokens})[0] - expected).abs().mean() / expected.std())


@pytest.mark.parametrize("name", "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K".split())
def test_every_type(name: str, tmp_path: Path) -> None:
    kept, dense = forms(written(tmp_path, "llama", weight=name))
    assert isinstance(kept.decoder.weights.layers[0].qkv.weight, QuantizedWeight)
    assert difference(kept, dense) < (1e-3 if name in ROUNDED else 1e-5)


@pytest.mark.parametrize("case", MODELS)
def test_every_layout(case: str, tmp_path: Path) -> None:
    """Interleaved rows, a tied output, biases, parts that are stacked in the file."""
    kept, dense = forms(written(tmp_path, case, weight="Q4_1"))
    weights = kept.decoder.weights
    projections = [weights.output]
    for layer in weights.layers:
        projections += [layer.qkv, layer.attention_output, layer.up, layer.down]
    assert all(isinstance(projection.weight, QuantizedWeight) for projection in projections)
    assert isinstance(weights.embedding, Tensor)
    assert difference(kept, dense) < 1e-5


def test_parts_of_unlike_types(tmp_path: Path) -> None:
    types = {"attn_q": "Q4_0", "attn_k": "Q6_K", "attn_v": "Q5_1", "ffn_gate": "Q4_0", "ffn_up": "Q8_0"}
    kept, dense = forms(written(tmp_path, "llama", **types))
    layer = kept.decoder.weights.layers[0]
    qkv, up = layer.qkv.weight, layer.up.weight
    assert isinstance(qkv, QuantizedWeight)
    assert isinstance(up, QuantizedWeight)
    assert (qkv.bits, qkv.group_size, qkv.zero, qkv.offsets is None) == (8, 16, 0, False)
    assert (up.bits, up.group_size, up.zero, up.offsets is None) == (8, 32, 128, True)
    assert isinstance(layer.down.weight, Tensor)
    assert difference(kept, dense) < 1e-3


def test_a_dense_part_makes_the_stack_dense(tmp_path: Path) -> None:
    kept, dense = forms(written(tmp_path, "llama", attn_q="Q4_0", attn_k="Q4_0", attn_output="Q4_0"))
    layer = kept.decoder.weights.layers[0]
    assert isinstance(layer.qkv.weight, Tensor)
    assert isinstance(layer.attention_output.weight, QuantizedWeight)
    assert difference(kept, dense) < 1e-5


def test_the_default_model(smollm2: Path) -> None:
    """Its scales and offsets are stored in half precision: nothing is rounded."""
    kept, dense = forms(smollm2)
    weights = kept.decoder.weights
    assert all(isinstance(layer.up.weight, QuantizedWeight) for layer in weights.layers)
    assert isinstance(weights.output.weight, QuantizedWeight)
    assert difference(kept, dense) < 1e-5
