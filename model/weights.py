"""A decoder's weights in memory, and how they come from a checkpoint: one tensor at a time, never two copies."""

from dataclasses import dataclass

from torch import Tensor

from kernels.backend import Linear


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm's weight [hidden], or a layer norm's weight and bias."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One transformer block. Projections that read the same input are stacked."""

    attention_norm: Norm
    qkv: Linear
    """[(heads + 2 kv_heads) * head_dim, hidden]: queries, keys, values, head after head."""
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    attention_output: Linear
    post_attention_norm: Norm | None = None
    mlp_norm: Norm
    up: Linear
    """[2 * mlp, hidden], the gate first, or [mlp, hidden] in an MLP without a gate."""
    down: Linear
    post_mlp_norm: Norm | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderWeights:
    """Everything a `DecoderSpec` calls for. A tied output projection shares the embedding's memory."""

    embedding: Tensor
    """[vocab, hidden]."""
    position_embedding: Tensor | None = None
    """[max_context, hidden]."""
    embedding_norm: Norm | None = None
    layers: list[LayerWeights]
    final_norm: Norm
    output: Linear
