"""A GGUF file's metadata under the keys of config.json, so that both formats are read by the same code.

GGUF's keys are defined by its specification (github.com/ggml-org/ggml, docs/gguf.md); llama.cpp's use of them decides
where the specification is silent.
"""

from collections.abc import Collection, Mapping

import numpy as np

from model.checkpoint.checkpoint import Checkpoint, RawTensor
from model.checkpoint.config import Config
from model.checkpoint.errors import CheckpointError, label
from model.spec import FactorsScaling

KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "rotary_dim": "rope.dimension_count",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
    "final_logit_softcapping": "final_logit_softcapping",
}
NORM_KEYS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
SCALING_KEYS = {
    "type": "rope.scaling.type",
    "factor": "rope.scaling.factor",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}
SCALING_TYPES = ("none", "linear", "yarn", "longrope")
LONGROPE_FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
MAGNITUDE = "rope.scaling.attn_factor"
KEYS_OF_ONE = (MAGNITUDE, "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor")
"""Multipliers whose only supported value is 1; longrope may have another MAGNITUDE."""
HARMLESS_KEYS = ("vocab_size", "attention.value_length", "rope.scaling.finetuned")
KNOWN_KEYS = frozenset({*KEYS.values(), *NORM_KEYS, *SCALING_KEYS.values(), *HARMLESS_KEYS})

ROPE_FACTORS = "rope_freqs.weight"
GEMMA_27B_LAYERS = 62


def gguf_config(checkpoint: Checkpoint, defaults: Mapping[str, object]) -> Config:
    """The file's metadata as a configuration; `defaults` give the values for which GGUF has no key.

    Raises CheckpointError for an unknown key that may change the mathematics.
    """
    architecture = checkpoint.config["general.architecture"]
    prefix = f"{architecture}."
    metadata = {key.removeprefix(prefix): value for key, value in checkpoint.config.items() if key.startswith(prefix)}
    values = {**defaults, "query_pre_attn_scalar": None}
    values |= {key: metadata.get(name) for key, name in KEYS.items()}
    values["norm_eps"] = next((metadata[key] for key in NORM_KEYS if key in metadata), None)
    values["sliding_window"] = values["sliding_window"] or None  # A window of 0 means that there is none.
    values["vocab_size"] = checkpoint.shape("token_embd.weight")[0]
    values["tie_word_embeddings"] = "output.weight" not in checkpoint.tensor_names()
    longrope = {
        key: checkpoint.read(name) for key, name in LONGROPE_FACTORS.items() if name in checkpoint.tensor_names()
    }
    values["rope_scaling"] = _longrope(metadata, longrope) if longrope else _rope_scaling(metadata)
    names = {**KEYS, "norm_eps": NORM_KEYS[0], "rope_scaling": "rope.scaling"}
    config = Config(values, label(checkpoint.name), names, prefix)
    _refuse_unknown(metadata, config, {MAGNITUDE} if longrope else set())
    _refuse_scaling(metadata, longrope, config)
    if architecture == "gemma3" and values["num_hidden_layers"] == GEMMA_27B_LAYERS:
        # GGUF has no key for the scale of attention scores. Like llama.cpp, we know this model by its number of layers.
        values["query_pre_attn_scalar"] = config.integer("hidden_size") / config.integer("num_attention_heads")
    return config


def read_rope_factors(checkpoint: Checkpoint, rotary_dim: int) -> FactorsScaling:
    """Divisors of the rotary frequencies, one for each of the `rotary_dim` / 2 pairs.

    llama.cpp's converter stores Llama 3's scaling in this form. Raises CheckpointError unless they are positive float32
    numbers.
    """
    shape = checkpoint.shape(ROPE_FACTORS)
    raw = checkpoint.read(ROPE_FACTORS) if shape == (rotary_dim // 2,) else None
    if raw is None or raw.dtype != "F32":
        raise CheckpointError(f"{label(checkpoint.name)}: {ROPE_FACTORS} is not {rotary_dim // 2} float32 numbers")
    if not (np.isfinite(raw.data) & (raw.data > 0)).all():
        raise CheckpointError(f"{label(checkpoint.name)}: {ROPE_FACTORS} holds a factor that is not positive")
    return FactorsScaling(tuple(raw.data.tolist()))


def _rope_scaling(metadata: Mapping[str, object]) -> dict[str, object] | None:
    scaling = {key: metadata[name] for key, name in SCALING_KEYS.items() if name in metadata}
    if scaling.get("type") == "none" or not scaling.get("factor"):
        return None
    return {"type": "linear", **scaling}


def _longrope(metadata: Mapping[str, object], factors: Mapping[str, RawTensor]) -> dict[str, object]:
    """Longrope's scaling as config.json would have it, from its two tensors of factors.

    llama.cpp's converter of Phi-3 writes no scaling type, and stores the magnitude as a number.
    """
    lists = {key: raw.float32().ravel().tolist() for key, raw in factors.items()}
    return {"type": "longrope", "attention_factor": metadata.get(MAGNITUDE, 1.0), **lists}


def _refuse_scaling(metadata: Mapping[str, object], factors: Mapping[str, RawTensor], config: Config) -> None:
    """Refuse an unknown scaling type, longrope's `factors` beside another type, and longrope without its factors."""
    kind, factor = metadata.get("rope.scaling.type"), metadata.get("rope.scaling.factor")
    if kind not in (None, *SCALING_TYPES):
        raise config.refusal("rope.scaling.type", f"is {label(kind)}, which is not supported")
    if factors and (kind not in (None, "none", "longrope") or factor not in (None, 0.0, 1.0)):
        raise config.refusal(
            "rope.scaling", f"is {label(kind)} with the factor {label(factor)}, beside longrope's tensors"
        )
    if kind == "longrope" and len(factors) < len(LONGROPE_FACTORS):
        raise config.refusal(
            "rope.scaling.type", f"is 'longrope', and {' or '.join(LONGROPE_FACTORS.values())} is missing"
        )


def _refuse_unknown(metadata: Mapping[str, object], config: Config, known: Collection[str]) -> None:
    for key, value in metadata.items():
        if key not in known and not _is_supported(key, value):
            raise config.refusal(key, f"is {label(value)}, which is not supported")
    if metadata.get("attention.value_length") != metadata.get("attention.key_length"):
        raise config.refusal("attention.value_length", "is not attention.key_length, which is not supported")


def _is_supported(key: str, value: object) -> bool:
    if key in KEYS_OF_ONE:
        return value == 1
    # The number 0 turns off whatever an unknown key controls. A false flag need not: it may turn off a default.
    return key in KNOWN_KEYS or (value == 0 and value is not False)
