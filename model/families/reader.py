"""Reads a checkpoint's configuration: its family, the decoder's spec, and the names of its tensors.

The module is torch-free, and does not know how tensors are read.
"""

from collections.abc import Mapping
from dataclasses import replace

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.config import Config
from model.checkpoint.errors import CheckpointError, label
from model.families.gguf_config import ROPE_FACTORS, gguf_config, read_rope_factors
from model.families.names import TensorNames
from model.families.rope_config import LayerKind, read_global_rope, read_local_rope, read_rope, scaled_context
from model.families.table import FAMILIES, Family
from model.spec import ActivationKind, DecoderSpec, LayerSpec, RopeSpec

MOST_LAYERS = 1024
MOST_HEADS = 1024

ACTIVATIONS: Mapping[str, ActivationKind] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def read_spec(checkpoint: Checkpoint, max_context: int | None = None) -> DecoderSpec:
    """The spec of the decoder that a checkpoint's configuration describes.

    `max_context` is the number of tokens that requests may have; None: the model's own limit. LongRoPE chooses its
    frequencies by it. It is not checked against the model's own limit here.

    Raises CheckpointError for an architecture or a value that is not supported; the message names it.
    """
    family = _family(checkpoint)
    if checkpoint.format == "huggingface":
        return _spec(family, _huggingface_config(family, checkpoint), max_context)
    config = gguf_config(checkpoint, family.defaults)
    spec = _with_rope_factors(_spec(family, config, max_context), checkpoint)
    if config.get("sliding_window") is not None and all(layer.window is None for layer in spec.layers):
        raise config.refusal("sliding_window", f"is not supported for {family.gguf_architecture}")
    return spec


def tensor_names(checkpoint: Checkpoint) -> TensorNames:
    """The names of the checkpoint's tensors. Raises CheckpointError for an unknown architecture."""
    family = _family(checkpoint)
    if checkpoint.format == "gguf":
        return family.gguf_names
    for names in (family.names, *family.other_names):
        if any(name.startswith(names.prefix) for name in checkpoint.tensor_names()):
            return names
    return replace(family.names, prefix="")


def _family(checkpoint: Checkpoint) -> Family:
    config = checkpoint.config
    architecture: object
    if checkpoint.format == "gguf":
        architecture = config.get("general.architecture")
        known = {family.gguf_architecture: family for family in FAMILIES if family.gguf_architecture}
    else:
        listed = config.get("architectures")
        architecture = listed[0] if isinstance(listed, list) and len(listed) == 1 else listed
        known = {family.architecture: family for family in FAMILIES}
    if not isinstance(architecture, str) or architecture not in known:
        what = f"the architecture {label(architecture)} is not supported; {', '.join(map(str, known))} are"
        raise CheckpointError(f"{label(checkpoint.name)}: {what}")
    return known[architecture]


def _huggingface_config(family: Family, checkpoint: Checkpoint) -> Config:
    config, prefix = checkpoint.config, ""
    if family.nested is not None:
        config, prefix = _nested(family.nested, checkpoint), f"{family.nested}."
    renamed = {key: config[name] for key, name in family.keys.items() if name in config}
    return Config({**family.defaults, **config, **renamed}, label(checkpoint.name), family.keys, prefix)


def _nested(key: str, checkpoint: Checkpoint) -> Mapping[str, object]:
    """The decoder's object in config.json, with "tie_word_embeddings" of the whole file where that is set."""
    inner = checkpoint.config.get(key)
    if not isinstance(inner, dict):
        raise CheckpointError(f"{label(checkpoint.name)}: {key} is {label(inner)}, not an object")
    tied = checkpoint.config.get("tie_word_embeddings")
    return inner if tied is None else {**inner, "tie_word_embeddings": tied}


def _spec(family: Family, config: Config, max_context: int | None) -> DecoderSpec:
    for key, value in family.fixed.items():
        config.require(key, value)
    hidden_size = config.integer("hidden_size")
    heads = config.integer("num_attention_heads", most=MOST_HEADS)
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.refusal("num_key_value_heads", f"is {kv_heads}, which does not divide {heads} attention heads")
    if config.get("head_dim") is None and hidden_size % heads:
        raise config.refusal("hidden_size", f"is {hidden_size}, which {heads} attention heads do not divide")
    head_dim = config.integer("head_dim", hidden_size // heads)
    softcap = config.get("final_logit_softcapping")
    layers = _layers(family, config, head_dim, max_context or config.integer("max_position_embeddings"))
    return DecoderSpec(
        family=family.name,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_size=config.integer("intermediate_size", None if family.gated_mlp else 4 * hidden_size),
        max_context=max(scaled_context(layer.rope, config) for layer in layers),
        norm=family.norm,
        norm_eps=config.number("norm_eps"),
        activation=_activation(config),
        gated_mlp=family.gated_mlp,
        attention_scale=config.number("query_pre_attn_scalar", head_dim) ** -0.5,
        learned_positions=family.learned_positions,
        alibi=family.alibi,
        embedding_scale=hidden_size**0.5 if family.scaled_embeddings else 1.0,
        embedding_norm=family.embedding_norm,
        qk_norm=family.qk_norm,
        post_norms=family.post_norms,
        logit_softcap=None if softcap is None else config.number("final_logit_softcapping"),
        tied_embeddings=config.flag("tie_word_embeddings", False),
    )


def _activation(config: Config) -> ActivationKind:
    name = config.text("hidden_act", "silu")
    if name not in ACTIVATIONS:
        raise config.refusal("hidden_act", f"is {label(name)}, which is not supported")
    return ACTIVATIONS[name]


def _layers(family: Family, config: Config, head_dim: int, context: int) -> tuple[LayerSpec, ...]:
    sliding = _sliding_layers(family, config)
    full = LayerSpec(_rope(family, config, head_dim, context, sliding=False))
    if not any(sliding):
        return (full,) * len(sliding)
    windowed = LayerSpec(_rope(family, config, head_dim, context, sliding=True), config.integer("sliding_window"))
    return tuple(windowed if slides else full for slides in sliding)


def _sliding_layers(family: Family, config: Config) -> list[bool]:
    count = config.integer("num_hidden_layers", most=MOST_LAYERS)
    kinds = config.get("layer_types")
    if kinds is None:
        return [family.is_sliding(config, layer) for layer in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count:
        raise config.refusal("layer_types", f"is not a list of {count} kinds")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise config.refusal("layer_types", f"has {label(kind)}, which is not supported")
    if "sliding_attention" in kinds and not config.flag("use_sliding_window", True):
        raise config.refusal("layer_types", "has sliding_attention, but use_sliding_window is false")
    return [kind == "sliding_attention" for kind in kinds]


def _rope(family: Family, config: Config, head_dim: int, context: int, *, sliding: bool) -> RopeSpec | None:
    if family.learned_positions or family.alibi:
        return None
    if family.local_rope:
        return (read_local_rope if sliding else read_global_rope)(config, head_dim, context)
    kind: LayerKind = "sliding_attention" if sliding else "full_attention"
    rope = read_rope(config, kind, head_dim, context, family.rope_types)
    if rope.dim != head_dim and not family.partial_rope:
        raise config.refusal("rotary_dim", f"is {rope.dim} of {head_dim}, which is not supported")
    return rope


def _with_rope_factors(spec: DecoderSpec, checkpoint: Checkpoint) -> DecoderSpec:
    """The spec with the rotary frequency factors that the GGUF file holds as a tensor, if it holds one."""
    if ROPE_FACTORS not in checkpoint.tensor_names():
        return spec
    rope = spec.layers[0].rope
    if rope is None or rope.scaling is not None or any(layer.rope != rope for layer in spec.layers):
        raise CheckpointError(f"{label(checkpoint.name)}: {ROPE_FACTORS} is not supported beside this configuration")
    scaled = replace(rope, scaling=read_rope_factors(checkpoint, rope.dim))
    return replace(spec, layers=tuple(replace(layer, rope=scaled) for layer in spec.layers))
