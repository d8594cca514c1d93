"""How weights come from a checkpoint into memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.backend import Linear, load_backend
from model.checkpoint.checkpoint import RawTensor
from model.checkpoint.errors import CheckpointError
from model.checkpoint.source import open_checkpoint
from model.families import read_spec
from model.weights import DecoderWeights, load_weights
from tests.tiny import CPU, TINY_MODELS, MemoryCheckpoint, TinyDecoder, random_tokens, save


def checkpoint_of(case: str, folder: Path) -> MemoryCheckpoint:
    return MemoryCheckpoint(save(TINY_MODELS[case].build(), folder))


def load(checkpoint: MemoryCheckpoint, dtype: torch.dtype = torch.float32) -> DecoderWeights:
    return load_weights(read_spec(checkpoint), checkpoint, load_backend(CPU, "reference"), dtype, CPU)


def dense(projection: Linear) -> Tensor:
    assert isinstance(projection.weight, Tensor)
    return projection.weight


def test_tied_output_shares_the_embedding(tmp_path: Path) -> None:
    weights = load(checkpoint_of("llama-tied", tmp_path))
    assert dense(weights.output).data_ptr() == weights.embedding.data_ptr()


def test_tied_model_may_carry_its_output_projection(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("llama-tied", tmp_path)
    checkpoint.tensors["lm_head.weight"] = checkpoint.read("model.embed_tokens.weight")
    load(checkpoint)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype_from_every_dtype(stored: torch.dtype, dtype: torch.dtype, tmp_path: Path) -> None:
    model = TINY_MODELS["llama"].build().to(stored)
    layer = load(MemoryCheckpoint(save(model, tmp_path)), dtype).layers[1]
    attention = model.model.layers[1].self_attn
    expected = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).to(dtype)
    assert torch.equal(dense(layer.qkv), expected)
    assert layer.mlp_norm.weight.dtype == dtype


def test_norm_offset_is_added_before_rounding(tmp_path: Path) -> None:
    model = TINY_MODELS["gemma3"].build().to(torch.bfloat16)
    weights = load(MemoryCheckpoint(save(model, tmp_path)))
    assert torch.equal(weights.final_norm.weight, 1 + model.model.norm.weight.float())


@pytest.mark.parametrize("case", ["gpt2", "bloom"])
def test_files_of_a_base_model_have_no_prefix(case: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(case, tmp_path)
    bare = MemoryCheckpoint(checkpoint)
    bare.tensors = {name.removeprefix("transformer."): tensor for name, tensor in checkpoint.tensors.items()}
    tokens = random_tokens(9)
    assert torch.equal(TinyDecoder(bare).step({0: tokens})[0], TinyDecoder(checkpoint).step({0: tokens})[0])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("language_model.model.", "model.language_model."),
        ("vision_tower.", "model.vision_tower."),
        ("vision_tower.", "vision_tower.vision_model."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ],
)
def test_the_text_of_a_multimodal_file_by_any_name(old: str, new: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of("gemma3-multimodal", tmp_path)
    other = MemoryCheckpoint(checkpoint)
    other.tensors = {name.replace(old, new): tensor for name, tensor in checkpoint.tensors.items()}
    assert other.tensors.keys() != checkpoint.tensors.keys()
    tokens = random_tokens(9)
    assert torch.equal(TinyDecoder(other).step({0: tokens})[0], TinyDecoder(checkpoint).step({0: tokens})[0])


@pytest.mark.parametrize(
    ("prefix", "output"), [("language_model.model.", "language_model."), ("model.language_model.", "")]
)
def test_output_projection_of_a_multimodal_file(prefix: str, output: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of("gemma3-multimodal", tmp_path)
    checkpoint.config["tie_word_embeddings"] = False
    checkpoint.tensors = {
        name.replace("language_model.model.", prefix): tensor for name, tensor in checkpoint.tensors.items()
    }
    head = RawTensor(np.ones((97, 64), np.float32), "F32")
    checkpoint.tensors[f"{output}lm_head.weight"] = head
    assert torch.equal(dense(load(checkpoint).output), torch.ones(97, 64))


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("gpt2", "transformer.h.2.attn.bias"),
        ("gpt2", "transformer.h.2.attn.masked_bias"),
        ("gpt2", "h.0.attn.bias"),
    ],
)
def test_tensors_that_are_no_weights_are_ignored(case: str, name: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(case, tmp_path)
    checkpoint.tensors[name] = RawTensor(np.ones(3, np.float32), "F32")
    load(checkpoint)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("llama", "model.layers.0.input_layernorm.bias"),
        ("llama", "model.layers.0.self_attn.q_norm.weight"),
        ("llama", "lm_head.bias"),
        ("llama", "model.layers.1.mlp.experts.0.w1.weight"),
        ("bloom", "transformer.h.0.attn.bias"),
        ("gemma3", "vision_tower.post_layernorm.weight"),
        ("gemma3-multimodal", "audio_tower.post_layernorm.weight"),
    ],
)
def test_tensors_without_a_place_are_refused(case: str, name: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(case, tmp_path)
    checkpoint.tensors[name] = RawTensor(np.ones(64, np.float32), "F32")
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("llama", "lm_head.weight"),
        ("llama", "model.layers.2.mlp.down_proj.weight"),
        ("llama-biased", "model.layers.1.self_attn.k_proj.bias"),
        ("qwen2", "model.layers.1.self_attn.q_proj.bias"),
        ("qwen3", "model.layers.1.self_attn.q_norm.weight"),
        ("gpt2", "transformer.h.0.mlp.c_fc.bias"),
        ("bloom", "transformer.ln_f.bias"),
    ],
)
def test_a_missing_tensor_is_named(case: str, name: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(case, tmp_path)
    del checkpoint.tensors[name]
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint)
    assert name in str(caught.value)


def test_a_shape_that_the_configuration_does_not_ask_for_is_named(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("gpt2", tmp_path)
    name = "transformer.h.0.attn.c_attn.weight"
    checkpoint.tensors[name] = RawTensor(np.ones((192, 64), np.float32), "F32")
    with pytest.raises(CheckpointError, match=r"c_attn\.weight.*\(192, 64\).*\(64, 192\)"):
        load(checkpoint)


def test_reading_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    """Loading twice gives the same: nothing is rearranged in place."""
    checkpoint = checkpoint_of("bloom", tmp_path)
    again = MemoryCheckpoint(open_checkpoint(tmp_path))
    first, second, third = (dense(load(source).layers[0].qkv) for source in (checkpoint, checkpoint, again))
    assert torch.equal(first, second)
    assert torch.equal(first, third)
