"""What is not supported is refused by name, and a hostile configuration ends in one line."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.load import load_backend
from model.checkpoint.errors import CheckpointError
from model.families.reader import read_spec
from model.families.table import FAMILIES
from model.loading.weights import load_weights
from tests.tiny import CPU, LONGROPE, TINY_MODELS, MemoryCheckpoint, save

Checkpoints = Callable[[str], MemoryCheckpoint]


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """A copy of a tiny model's checkpoint that a test may change."""
    saved: dict[str, MemoryCheckpoint] = {}

    def copy(case: str) -> MemoryCheckpoint:
        if case not in saved:
            saved[case] = MemoryCheckpoint(save(TINY_MODELS[case].build(), tmp_path_factory.mktemp(case)))
        return MemoryCheckpoint(saved[case])

    return copy


def load(checkpoint: MemoryCheckpoint) -> None:
    load_weights(read_spec(checkpoint), checkpoint, load_backend(CPU, "reference"), torch.float32, CPU)


ROPE = {"rope_theta": 1000.0, "factor": 2.0}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
    ("llama", {"architectures": None}, "architecture None"),
    ("llama", {"architectures": [["LlamaForCausalLM"]]}, "architecture"),
    ("gemma3", {"architectures": ["Gemma3ForConditionalGeneration"]}, "text_config"),
    ("gemma3", {"rope_parameters": {**ROPE, "rope_type": "linear"}}, "rope_parameters"),
    ("gemma3-multimodal", {"text_config": None}, "text_config"),
    ("gemma3-multimodal", {"text_config": []}, "text_config"),
    ("gemma3-multimodal", {"tie_word_embeddings": False}, "lm_head.weight"),
    ("llama", {"hidden_act": "relu"}, "'relu'"),
    ("llama", {"hidden_act": 3}, "hidden_act"),
    ("llama", {"sliding_window": 7}, "sliding_window"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("mistral", {"sliding_window": 0}, "sliding_window"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "use_sliding_window"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": None, "layer_types": None, "max_window_layers": 1},
     "sliding_window"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gemma3", {"hidden_activation": "gelu_fast"}, "hidden_activation"),
    ("gemma3", {"final_logit_softcapping": -1.0}, "final_logit_softcapping"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"n_head": 5}, "n_embd"),
    ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    ("phi3", {"rope_parameters": {**ROPE, "rope_type": "longrope"}}, "rope_parameters.short_factor"),
    ("phi3", {"rope_parameters": {**ROPE, "rope_type": "linear"}}, "'linear'"),
    ("phi3-longrope", {"rope_parameters": {**LONGROPE, "long_factor": [1.0] * 5}}, "rope_parameters.long_factor"),
    ("phi3-longrope", {"rope_parameters": {**LONGROPE, "long_factor": [1.0] * 5 + [0]}},
     "rope_parameters.long_factor[5]"),
    ("phi3-longrope", {"rope_parameters": {**LONGROPE, "short_mscale": 1.2}}, "rope_parameters.short_mscale"),
    ("phi3-longrope", {"rope_parameters": {**LONGROPE, "original_max_position_embeddings": 8}},
     "rope_parameters.original_max_position_embeddings"),
    ("llama", {"rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 1e9}}, "max_position_embeddings"),
    ("phi3", {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.35}}, "partial_rotary_factor"),
    ("llama", {"rope_parameters": {**ROPE, "rope_type": "default", "partial_rotary_factor": 0.5}}, "rotary_dim"),
    ("llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic", "alpha": 1000.0}}, "alpha"),
    ("llama", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 0}}, "rope_parameters.factor"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor"),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1.0}}, "rope_theta"),
    ("llama", {"rope_parameters": {**ROPE, "rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 4}},
     "low_freq_factor"),
    ("llama", {"rope_parameters": {"full_attention": {**ROPE, "rope_type": "ntk"}}}, "full_attention.rope_type"),
    ("llama", {"rope_parameters": 7}, "rope_parameters"),
    ("llama", {"rope_parameters": None, "rope_scaling": {"type": "su", "factor": 4.0}}, "'su'"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("llama", {"num_hidden_layers": True}, "num_hidden_layers"),
    ("llama", {"max_position_embeddings": -1}, "max_position_embeddings"),
    ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps"),
    ("llama", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ("llama", {"vocab_size": 1 << 23}, "model.embed_tokens.weight"),
    ("llama", {"intermediate_size": 1 << 23}, "mlp.gate_proj.weight"),
    ("llama", {"num_hidden_layers": 4}, "model.layers.3."),
    ("llama", {"num_hidden_layers": 2}, "model.layers.2."),
    ("gpt2", {"n_positions": 1 << 23}, "transformer.wpe.weight"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "changes", "named"), REFUSED)
def test_refused_by_name(case: str, changes: dict[str, Any], named: str, checkpoint_of: Checkpoints) -> None:
    checkpoint = checkpoint_of(case)
    checkpoint.config |= changes
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_required_values_that_are_missing_are_named(family: Any, checkpoint_of: Checkpoints) -> None:
    key = family.keys.get("num_hidden_layers", "num_hidden_layers")
    checkpoint = checkpoint_of(family.name)
    section = checkpoint.config if family.nested is None else checkpoint.config[family.nested]
    assert isinstance(section, dict)
    del section[key]
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        read_spec(checkpoint)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=8,
)
NESTED = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn", "longrope"])},
    optional=dict.fromkeys(
        "rope_theta factor attention_factor beta_fast beta_slow mscale mscale_all_dim truncate low_freq_factor "
        "high_freq_factor original_max_position_embeddings partial_rotary_factor full_attention "
        "short_factor long_factor".split(),
        JSON | st.floats(0, 100),
    ),
)


@pytest.mark.parametrize(
    "case",
    [
        "llama",
        "mistral",
        "qwen2-window",
        "qwen3",
        "gemma3",
        "gemma3-multimodal",
        "phi3",
        "phi3-longrope",
        "gpt2",
        "bloom",
    ],
)
@given(data=st.data())
def test_any_value_makes_a_spec_or_one_line(case: str, checkpoint_of: Checkpoints, data: st.DataObject) -> None:
    checkpoint = checkpoint_of(case)
    key = data.draw(st.sampled_from([*checkpoint.config, "rope_scaling", "head_dim"]))
    checkpoint.config[key] = data.draw(NESTED if key in ("rope_parameters", "rope_scaling") else JSON)
    message = ""
    try:
        hash(read_spec(checkpoint))
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message
