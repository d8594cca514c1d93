"""How weights come from a checkpoint into memory."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from kernels.backend import Linear
from kernels.load import load_backend
from kernels.reference import ReferenceBackend
from model.checkpoint.checkpoint import Checkpoint, RawTensor
from model.checkpoint.errors import CheckpointError
from model.checkpoint.source import open_checkpoint
from model.families.reader import read_spec
from model.loading.weights import load_weights
from model.weights import DecoderWeights
from tests.tiny import CPU, TINY_MODELS, MemoryCheckpoint, TinyDecoder, random_tokens, reference_logits, save


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tied_model_may_carry_its_output_projection(
    dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = MemoryCheckpoint(save(TINY_MODELS["llama-tied"].build().to(dtype), tmp_path))
    # The same numbers, in whichever dtype.
    checkpoint.tensors["lm_head.weight"] = RawTensor(checkpoint.read("model.embed_tokens.weight").float32(), "F32")
    weights = load(checkpoint)
    assert dense(weights.output).data_ptr() == weights.embedding.data_ptr()
    assert caplog.records == []


def rename(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change what the one file of a folder holds."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def other_output(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].roll(1, 0).contiguous()


def output_alone(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


@pytest.mark.parametrize(
    ("change", "warnings"),
    [(other_output, 1), (output_alone, 0), (lambda tensors: None, 0)],
    ids=["both", "output", "embedding"],
)
def test_a_tie_is_what_transformers_makes_of_it(
    change: Callable[[dict[str, Tensor]], None], warnings: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(TINY_MODELS["llama-tied"].build(), tmp_path)
    rename(tmp_path, change)
    tokens = random_tokens(9)
    ours = TinyDecoder(open_checkpoint(tmp_path)).step({0: tokens})[0]
    lines = [record.getMessage() for record in caplog.records if record.name == "model.loading.weights"]
    assert [("lm_head.weight is not the embedding" in line) for line in lines] == [True] * warnings
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(ours, reference_logits(model, tokens), atol=1e-4, rtol=0)


def test_an_output_of_another_shape_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("llama-tied", tmp_path)
    checkpoint.tensors["lm_head.weight"] = RawTensor(np.ones((96, 64), np.float32), "F32")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.*\(96, 64\).*\(97, 64\)"):
        load(checkpoint)


def test_an_output_apart_from_its_tied_embedding_shares_nothing_where_both_are_packed(tmp_path: Path) -> None:
    class Packing(ReferenceBackend):
        embeds_packed = True

    checkpoint = checkpoint_of("llama-tied", tmp_path)
    spec = read_spec(checkpoint)
    tied = load_weights(spec, checkpoint, Packing(), torch.float32, CPU)
    assert tied.output is tied.embedding
    checkpoint.tensors["lm_head.weight"] = RawTensor(np.ones((97, 64), np.float32), "F32")
    apart = load_weights(spec, checkpoint, Packing(), torch.float32, CPU)
    assert (dense(apart.output) == 1).all()
    assert isinstance(apart.embedding, Linear)
    assert torch.equal(dense(apart.embedding), torch.from_numpy(checkpoint.read("model.embed_tokens.weight").data))


def in_shards(case: str, folder: Path, *promised: str) -> Checkpoint:
    """A model in shards, whose index also names tensors that no shard has."""
    TINY_MODELS[case].build().save_pretrained(folder, max_shard_size="50KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= dict.fromkeys(promised, index["weight_map"]["model.norm.weight"])
    path.write_text(json.dumps(index))
    return open_checkpoint(folder)


def test_an_index_may_promise_a_tied_output_that_no_shard_has(tmp_path: Path) -> None:
    checkpoint = in_shards("llama-tied", tmp_path, "lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq")
    tokens = random_tokens(9)
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = TinyDecoder(checkpoint).step({0: tokens})[0]
    torch.testing.assert_close(ours, reference_logits(model, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj.bias", "model.layers.3.input_layernorm.weight"])
def test_an_index_may_promise_nothing_else_that_no_shard_has(name: str, tmp_path: Path) -> None:
    """Also not what the decoder would do without, such as a bias."""
    with pytest.raises(CheckpointError, match=rf"'{name}' is not in 'model-000"):
        TinyDecoder(in_shards("llama-tied", tmp_path, name))


def test_what_a_shard_has_counts_though_the_index_does_not_name_it(tmp_path: Path) -> None:
    in_shards("llama", tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    # One tensor of each shard.
    index["weight_map"] = {name: shard for shard, name in {s: n for n, s in index["weight_map"].items()}.items()}
    path.write_text(json.dumps(index))
    tokens = random_tokens(9)
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = TinyDecoder(open_checkpoint(tmp_path)).step({0: tokens})[0]
    torch.testing.assert_close(ours, reference_logits(model, tokens), atol=1e-4, rtol=0)


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
