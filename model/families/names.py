"""The names and layouts under which a file stores a decoder's tensors.

One `TensorNames` describes one family in one file format. Several families share the instances below; `table` has
what each changes of them.
"""

import re
from dataclasses import dataclass
from typing import Literal

from model.families.gguf_config import LONGROPE_FACTORS, ROPE_FACTORS

QkvLayout = Literal["half_split", "interleaved", "per_head"]
"""Order of the rows of queries, keys and values in the file.

half_split: all queries, all keys, all values; rotary pairs of a head are (i, i + dim / 2). The decoder reads this one.
interleaved: as half_split, but rotary pairs of queries and keys are neighbours, (2 i, 2 i + 1).
per_head: one tensor with the query, key and value of head 0, those of head 1, and so on.
"""

Projection = Literal["qkv", "attention_output", "up", "down"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """Tensor names without ".weight" and ".bias". A name that the family's spec does not need is never looked up."""

    prefix: str = ""
    """Prefix of all names but `output`; files of a bare base model have none."""
    embedding: str
    position_embedding: str = ""
    embedding_norm: str = ""
    final_norm: str
    output: str
    """Name of the output projection, where it is not the embedding."""

    layer: str
    """Prefix of the names below, after `prefix`; "{}" stands for the layer's index."""
    attention_norm: str
    qkv: tuple[str, ...]
    """Names of the query, key and value projections, or of the one tensor that holds all three."""
    query_norm: str = ""
    key_norm: str = ""
    attention_output: str
    post_attention_norm: str = ""
    mlp_norm: str
    up: tuple[str, ...]
    """Names of the gate and up projections, or of the one tensor that holds all rows."""
    down: str
    post_mlp_norm: str = ""

    biased: frozenset[Projection] = frozenset()
    """Projections that must have a bias; the others may have one."""
    norm_offset: float = 0.0
    """Number added to the weights of RMS norms; Gemma stores them less 1."""
    transposed: bool = False
    """Whether projections are stored [in, out] instead of [out, in]."""
    qkv_layout: QkvLayout = "half_split"
    ignored: tuple[str, ...] = ()
    """Regular expressions of whole names, prefix included, of tensors that are not weights."""

    @property
    def embedding_weight(self) -> str:
        """Full name of the embedding's tensor."""
        return f"{self.prefix}{self.embedding}.weight"

    @property
    def output_weight(self) -> str:
        """Full name of the output projection's tensor."""
        return f"{self.output}.weight"


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
