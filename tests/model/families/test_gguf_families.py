"""Every GGUF architecture against transformers in float32, on files written by llama.cpp's conventions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint.checkpoint import RawTensor
from model.checkpoint.errors import CheckpointError
from model.checkpoint.source import open_checkpoint
from model.families.reader import read_spec
from tests.tiny import TINY_MODELS, MemoryCheckpoint, TinyDecoder, TinyModel, random_tokens, reference_logits
from tests.tiny_gguf import write_gguf

PROMPT = 40


def with_changes(model: TinyModel, **changes: Any) -> TinyModel:
    return replace(model, config={**model.config, **changes})


# A GGUF file has no pattern of windows and no scale of the scores for Gemma: they are those of the real models.
GEMMA = with_changes(
    TINY_MODELS["gemma3"], num_hidden_layers=7, sliding_window_pattern=6, head_dim=24, query_pre_attn_scalar=24
)
FILES = {
    "llama": ("llama", TINY_MODELS["llama"]),
    "llama-tied": ("llama", with_changes(TINY_MODELS["llama-tied"], head_dim=16)),
    "llama-biased": ("llama", TINY_MODELS["llama-biased"]),
    "llama-linear": ("llama", TINY_MODELS["llama-linear"]),
    "llama-yarn": ("llama", TINY_MODELS["llama-yarn"]),
    "mistral": ("llama", with_changes(TINY_MODELS["mistral"], sliding_window=None)),
    "qwen2": ("qwen2", TINY_MODELS["qwen2"]),
    "qwen3": ("qwen3", TINY_MODELS["qwen3"]),
    "gemma3": ("gemma3", GEMMA),
    "gemma3-softcap": ("gemma3", with_changes(GEMMA, final_logit_softcapping=3.0)),
    "gemma3-27b": ("gemma3", with_changes(GEMMA, num_hidden_layers=62, query_pre_attn_scalar=16, hidden_size=64)),
    "phi3": ("phi3", TINY_MODELS["phi3"]),
    "phi3-longrope": ("phi3", TINY_MODELS["phi3-longrope"]),
    "gpt2": ("gpt2", TINY_MODELS["gpt2"]),
}


def assert_equal_logits(model: Any, path: Path) -> None:
    tokens = random_tokens(PROMPT)
    ours = TinyDecoder(open_checkpoint(path)).step({0: tokens})[0]
    torch.testing.assert_close(ours, reference_logits(model, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", FILES)
def test_logits(case: str, tmp_path: Path) -> None:
    architecture, tiny = FILES[case]
    model = tiny.build()
    write_gguf(model, tmp_path / "model.gguf", architecture)
    assert_equal_logits(model, tmp_path / "model.gguf")


def test_llama3_scaling_as_factors(tmp_path: Path) -> None:
    model = TINY_MODELS["llama-llama3"].build()
    write_gguf(model, tmp_path / "model.gguf", "llama", rope_factors=True)
    assert_equal_logits(model, tmp_path / "model.gguf")


@pytest.mark.parametrize(("max_context", "length"), [(16, 16), (17, 40), (None, 40)])
def test_longrope_chooses_by_the_context_that_is_served(max_context: int | None, length: int, tmp_path: Path) -> None:
    model = TINY_MODELS["phi3-longrope"].build()
    write_gguf(model, tmp_path / "model.gguf", "phi3")
    tokens = random_tokens(length)
    ours = TinyDecoder(open_checkpoint(tmp_path / "model.gguf"), max_context=max_context).step({0: tokens})[0]
    torch.testing.assert_close(ours, reference_logits(model, tokens), atol=1e-4, rtol=0)


def test_a_type_without_a_factor_scales_nothing(llama: MemoryCheckpoint) -> None:
    """As in llama.cpp, where the factor is 1 unless the file says otherwise."""
    checkpoint = MemoryCheckpoint(llama)
    checkpoint.config |= {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.original_context_length": 16}
    assert read_spec(checkpoint) == read_spec(llama)


@pytest.mark.parametrize("stated", [16, 20, 64])
def test_yarn_extends_the_context(stated: int, tmp_path: Path) -> None:
    checkpoint = in_memory("llama-yarn", tmp_path)
    checkpoint.config["llama.context_length"] = stated
    assert read_spec(checkpoint).max_context == 64


@pytest.mark.parametrize(
    ("changes", "tensors", "named"),
    [
        ({}, {"rope_factors_short.weight": None}, "short_factor"),
        ({}, {"rope_factors_long.weight": None}, "long_factor"),
        ({}, {"rope_factors_short.weight": None, "rope_factors_long.weight": None}, "phi3.rope.scaling.attn_factor"),
        ({}, {"rope_factors_long.weight": np.ones(5, np.float32)}, "long_factor"),
        ({}, {"rope_factors_short.weight": np.full(6, np.nan, np.float32)}, "short_factor"),
        ({"phi3.rope.scaling.type": "linear", "phi3.rope.scaling.factor": 4.0}, {}, "phi3.rope.scaling"),
        ({"phi3.rope.scaling.factor": 4.0}, {}, "phi3.rope.scaling"),
        ({"phi3.rope.scaling.attn_factor": -1.0}, {}, "attention_factor"),
        ({"phi3.rope.scaling.type": "longrope"}, {"rope_factors_long.weight": None}, "rope_factors_long.weight"),
    ],
    ids=str,
)
def test_half_a_longrope_is_refused(
    changes: dict[str, object], tensors: dict[str, Any], named: str, tmp_path: Path
) -> None:
    checkpoint = in_memory("phi3-longrope", tmp_path)
    checkpoint.config |= changes
    for name, data in tensors.items():
        checkpoint.tensors.pop(name)
        if data is not None:
            checkpoint.tensors[name] = RawTensor(data, "F32")
    with pytest.raises(CheckpointError) as caught:
        read_spec(checkpoint)
    assert named in str(caught.value)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> MemoryCheckpoint:
    return in_memory("llama", tmp_path_factory.mktemp("llama"))


def in_memory(case: str, folder: Path) -> MemoryCheckpoint:
    architecture, tiny = FILES[case]
    write_gguf(tiny.build(), folder / "model.gguf", architecture)
    return MemoryCheckpoint(open_checkpoint(folder / "model.gguf"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"general.architecture": "mamba"}, "'mamba'"),
        ({"general.architecture": None}, "None"),
        ({"general.architecture": ["llama"]}, "llama"),
        ({"llama.expert_count": 8}, "llama.expert_count"),
        ({"llama.attention.causal": False}, "llama.attention.causal"),
        ({"llama.attention.max_alibi_bias": 8.0}, "llama.attention.max_alibi_bias"),
        ({"llama.attention.value_length": 8}, "llama.attention.value_length"),
        ({"llama.attention.sliding_window": 4096}, "llama.attention.sliding_window"),
        ({"llama.attention.head_count": [4, 4, 2]}, "llama.attention.head_count"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "llama.attention.layer_norm_rms_epsilon"),
        ({"llama.block_count": 1 << 30}, "llama.block_count"),
        ({"llama.context_length": None}, "llama.context_length"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope'"),
        ({"llama.rope.scaling.type": "dynamic", "llama.rope.scaling.factor": 2.0}, "'dynamic'"),
        ({"llama.rope.scaling.type": "su"}, "'su'"),
        ({"llama.rope.scaling.type": ["yarn"]}, "llama.rope.scaling.type"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0, "llama.rope.scaling.attn_factor": 1.2},
         "llama.rope.scaling.attn_factor"),
        ({"llama.rope.scaling.factor": float("inf")}, "llama.rope.scaling.factor"),
    ],
)  # fmt: skip
def test_refused_metadata(changes: dict[str, object], named: str, llama: MemoryCheckpoint) -> None:
    checkpoint = MemoryCheckpoint(llama)
    checkpoint.config |= changes
    with pytest.raises(CheckpointError) as caught:
        read_spec(checkpoint)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.integers())


@given(data=st.data())
def test_any_metadata_makes_a_spec_or_one_line(llama: MemoryCheckpoint, data: st.DataObject) -> None:
    checkpoint = MemoryCheckpoint(llama)
    known = st.sampled_from([*checkpoint.config, "llama.rope.scaling.factor", "llama.rope.scaling.type"])
    checkpoint.config |= data.draw(st.dictionaries(known | st.text(max_size=10).map("llama.".__add__), VALUES))
    message = ""
    try:
        hash(read_spec(checkpoint))
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize("key", ["qwen2.attention.sliding_window", "qwen2.attention.sliding_window_pattern"])
def test_window_that_a_family_does_not_have_is_refused(key: str, tmp_path: Path) -> None:
    checkpoint = in_memory("qwen2", tmp_path)
    checkpoint.config |= {"qwen2.attention.sliding_window": 7, key: 7}
    with pytest.raises(CheckpointError, match="sliding_window"):
        read_spec(checkpoint)


@pytest.mark.parametrize(
    "factors",
    [np.ones(7, np.float32), np.zeros(8, np.float32), np.full(8, np.nan, np.float32), np.ones(8, np.float16)],
    ids=["too few", "zero", "nan", "half"],
)
def test_bad_rope_factors_are_refused(factors: Any, llama: MemoryCheckpoint) -> None:
    checkpoint = MemoryCheckpoint(llama)
    checkpoint.tensors["rope_freqs.weight"] = RawTensor(factors, "F16" if factors.dtype == np.float16 else "F32")
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
        read_spec(checkpoint)


def test_rope_factors_beside_a_scaling_are_refused(llama: MemoryCheckpoint) -> None:
    checkpoint = MemoryCheckpoint(llama)
    checkpoint.tensors["rope_freqs.weight"] = RawTensor(np.ones(8, np.float32), "F32")
    checkpoint.config |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
        read_spec(checkpoint)
