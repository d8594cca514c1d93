"""A decoder's weights in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.backend import Linear


@dataclass(frozen=True, slots=True)
class Norm:
    """Weight [hidden] of an RMS norm, or weight and bias [hidden] of a layer norm."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """The weights of one layer. Projections that read the same input are stacked into one."""

    attention_norm: Norm
    qkv: Linear
    """[(heads + 2 kv_heads) * head_dim, hidden]: all queries, then all keys, then all values, head by head."""
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
    """All weights of a decoder. A tied output projection shares the embedding's memory."""

    embedding: Tensor | Linear
    """[vocab, hidden]; a Linear where the backend reads embeddings from a packed matrix."""
    position_embedding: Tensor | None = None
    """[max_context, hidden]."""
    embedding_norm: Norm | None = None
    layers: list[LayerWeights]
    final_norm: Norm
    output: Linear

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return self.final_norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return self.final_norm.weight.dtype
