"""The model families: one entry for each, with its differences from Llama in mathematics, configuration and names.

A family whose mathematics the decoder already knows needs an entry here and nothing else. The module is torch-free, and
does not know how tensors are read.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.config import Config
from model.checkpoint.errors import CheckpointError, label
from model.gguf_config import LONGROPE_FACTORS, ROPE_FACTORS, gguf_config, read_rope_factors
from model.rope_config import ROPE_TYPES, LayerKind, read_global_rope, read_local_rope, read_rope, scaled_context
from model.spec import ActivationKind, DecoderSpec, LayerSpec, NormKind, RopeSpec
from model.tensor_names import TensorNames

MOST_LAYERS = 1024
MOST_HEADS = 1024

ACTIVATIONS: Mapping[str, ActivationKind] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

LLAMA_NAMES = TensorNames(
    prefix="model.",
    embedding="embed_tokens",
    final_norm="norm",
    output="lm_head",
    layer="layers.{}.",
    attention_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    attention_output="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    ignored=(r".*\.rotary_emb\.inv_freq",),
)
GPT2_NAMES = TensorNames(
    prefix="transformer.",
    embedding="wte",
    position_embedding="wpe",
    final_norm="ln_f",
    output="lm_head",
    layer="h.{}.",
    attention_norm="ln_1",
    qkv=("attn.c_attn",),
    attention_output="attn.c_proj",
    mlp_norm="ln_2",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    biased=frozenset({"qkv", "attention_output", "up", "down"}),
    transposed=True,
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),
)
BLOOM_NAMES = TensorNames(
    prefix="transformer.",
    embedding="word_embeddings",
    embedding_norm="word_embeddings_layernorm",
    final_norm="ln_f",
    output="lm_head",
    layer="h.{}.",
    attention_norm="input_layernorm",
    qkv=("self_attention.query_key_value",),
    attention_output="self_attention.dense",
    mlp_norm="post_attention_layernorm",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    biased=frozenset({"qkv", "attention_output", "up", "down"}),
    qkv_layout="per_head",
)
GGUF_NAMES = TensorNames(
    embedding="token_embd",
    position_embedding="position_embd",
    final_norm="output_norm",
    output="output",
    layer="blk.{}.",
    attention_norm="attn_norm",
    qkv=("attn_q", "attn_k", "attn_v"),
    query_norm="attn_q_norm",
    key_norm="attn_k_norm",
    attention_output="attn_output",
    post_attention_norm="post_attention_norm",
    mlp_norm="ffn_norm",
    up=("ffn_gate", "ffn_up"),
    down="ffn_down",
    post_mlp_norm="post_ffw_norm",
    ignored=(*map(re.escape, [ROPE_FACTORS, *LONGROPE_FACTORS.values()]), r"blk\.\d+\.attn_rot_embd\.weight"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model family; every default is Llama's value."""

    name: str
    architecture: str
    """Name in the list "architectures" of config.json."""
    gguf_architecture: str | None = None
    """Name under "general.architecture" in GGUF files; None: GGUF files of the family are not supported."""
    nested: str | None = None
    """Key of the object in config.json that describes the decoder, in models that have other parts (vision) too."""
    names: TensorNames = LLAMA_NAMES
    other_names: tuple[TensorNames, ...] = ()
    """Names under which other versions of transformers saved the same tensors."""
    gguf_names: TensorNames = GGUF_NAMES

    keys: Mapping[str, str] = field(default_factory=lambda: {"norm_eps": "rms_norm_eps"})
    """The family's own key in config.json for each key that is not Llama's."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Values that transformers assumes where config.json has none."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """Keys that change the mathematics, each with the one value that is supported; any other is refused."""

    norm: NormKind = "rms"
    gated_mlp: bool = True
    learned_positions: bool = False
    alibi: bool = False
    embedding_norm: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    scaled_embeddings: bool = False
    """Whether embeddings are multiplied by the square root of the hidden size."""
    rope_types: Mapping[str, str] = field(default_factory=lambda: ROPE_TYPES)
    """Supported kinds of rope scaling, by the names that the family's files give them."""
    partial_rope: bool = False
    """Whether rotary embedding may cover only a part of each head."""
    local_rope: bool = False
    """Whether sliding layers have a rotary base of their own."""
    is_sliding: Callable[[Config, int], bool] = lambda config, layer: False
    """Whether a layer, by its index, attends within the window; asked where config.json has no "layer_types"."""


def _all_layers_slide(config: Config, layer: int) -> bool:
    return config.get("sliding_window") is not None


def _late_layers_slide(config: Config, layer: int) -> bool:
    return config.flag("use_sliding_window", False) and layer >= config.integer("max_window_layers", 28)


def _pattern_slides(config: Config, layer: int) -> bool:
    """Every layer slides but each n-th one, where n is "sliding_window_pattern"."""
    every = config.integer("sliding_window_pattern", 6)
    return config.get("sliding_window") is not None and (layer + 1) % every != 0


LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    gguf_architecture="llama",
    gguf_names=replace(GGUF_NAMES, qkv_layout="interleaved"),
    fixed={"sliding_window": None, "layer_types": None},
)
MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    defaults={"sliding_window": 4096},
    fixed={"layer_types": None},
    is_sliding=_all_layers_slide,
)
QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    gguf_architecture="qwen2",
    names=replace(LLAMA_NAMES, biased=frozenset({"qkv"})),
    gguf_names=replace(GGUF_NAMES, biased=frozenset({"qkv"})),
    defaults={"sliding_window": 4096, "use_sliding_window": False},
    is_sliding=_late_layers_slide,
)
QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    gguf_architecture="qwen3",
    defaults={"head_dim": 128, "sliding_window": 4096, "use_sliding_window": False},
    qk_norm=True,
    is_sliding=_late_layers_slide,
)
GEMMA3 = Family(
    name="gemma3",
    architecture="Gemma3ForCausalLM",
    gguf_architecture="gemma3",
    names=replace(
        LLAMA_NAMES,
        post_attention_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        post_mlp_norm="post_feedforward_layernorm",
        norm_offset=1.0,
    ),
    keys={"norm_eps": "rms_norm_eps", "hidden_act": "hidden_activation"},
    defaults={
        "hidden_act": "gelu_pytorch_tanh",
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
        "norm_eps": 1e-6,
        "rope_theta": 1e6,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    fixed={"attn_logit_softcapping": None, "use_bidirectional_attention": False},
    qk_norm=True,
    post_norms=True,
    scaled_embeddings=True,
    local_rope=True,
    is_sliding=_pattern_slides,
)
VISION = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)
GEMMA3_MULTIMODAL = replace(
    GEMMA3,
    name="gemma3-multimodal",
    architecture="Gemma3ForConditionalGeneration",
    # llama.cpp keeps the vision parts in a separate file, so its GGUF file is that of plain Gemma 3.
    gguf_architecture=None,
    nested="text_config",
    names=replace(
        GEMMA3.names,
        prefix="language_model.model.",
        output="language_model.lm_head",
        ignored=GEMMA3.names.ignored + VISION,
    ),
    other_names=(replace(GEMMA3.names, prefix="model.language_model.", ignored=GEMMA3.names.ignored + VISION),),
)
PHI3 = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    gguf_architecture="phi3",
    names=replace(LLAMA_NAMES, qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",)),
    gguf_names=replace(GGUF_NAMES, qkv=("attn_qkv",), up=("ffn_up",)),
    defaults={"original_max_position_embeddings": 4096},
    fixed={"layer_types": None},
    rope_types={"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"},
    partial_rope=True,
    is_sliding=_all_layers_slide,
)
GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    gguf_architecture="gpt2",
    names=GPT2_NAMES,
    gguf_names=replace(GGUF_NAMES, qkv=("attn_qkv",), up=("ffn_up",), biased=GPT2_NAMES.biased),
    keys={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "hidden_act": "activation_function",
        "norm_eps": "layer_norm_epsilon",
    },
    defaults={"hidden_act": "gelu_new", "tie_word_embeddings": True},
    fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    },
    norm="layer",
    gated_mlp=False,
    learned_positions=True,
)
BLOOM = Family(
    name="bloom",
    architecture="BloomForCausalLM",
    names=BLOOM_NAMES,
    keys={
        "hidden_size": "n_embed",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "seq_length",
        "norm_eps": "layer_norm_epsilon",
    },
    # The published models were trained with a context of 2048 tokens; their files do not say so.
    defaults={"hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 2048, "tie_word_embeddings": True},
    fixed={"apply_residual_connection_post_layernorm": False},
    norm="layer",
    gated_mlp=False,
    alibi=True,
    embedding_norm=True,
)

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3, GEMMA3_MULTIMODAL, PHI3, GPT2, BLOOM)


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
