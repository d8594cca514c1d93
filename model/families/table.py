"""The table of model families. An entry has what differs from Llama: mathematics, configuration keys, tensor names.

A family whose mathematics the decoder already knows needs an entry here and nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from model.checkpoint.config import Config
from model.families.names import BLOOM_NAMES, GGUF_NAMES, GPT2_NAMES, LLAMA_NAMES, TensorNames
from model.families.rope_config import ROPE_TYPES
from model.spec import NormKind


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
