"""The size of a decoder: the parameters of each of its parts, and the memory that its weights take."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from kernels.backend import Linear
from model.limits import ModelSize
from model.spec import DecoderSpec
from model.weights import DecoderWeights, LayerWeights, Norm


def model_size(spec: DecoderSpec, weights: DecoderWeights) -> ModelSize:
    """The sizes of a loaded decoder.

    Matrices are counted by the spec, because backends pad and pack them; what is optional, by the weights.
    """
    width, learned = spec.hidden_size, weights.position_embedding
    table = spec.vocab_size * width
    projection = (0 if spec.tied_embeddings else table) + _bias(weights.output)
    return ModelSize(
        hidden_size=width,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        mlp_size=spec.mlp_size,
        embedding=table + (0 if learned is None else learned.numel()) + _norm(weights.embedding_norm),
        attention=sum(_attention(spec, layer) for layer in weights.layers),
        feed_forward=sum(_feed_forward(spec, layer) for layer in weights.layers),
        head=projection + _norm(weights.final_norm),
        weight_bytes=weight_bytes(weights),
    )


def weight_bytes(weights: DecoderWeights) -> int:
    """Bytes of all tensors; those that share their memory count once."""
    storages = [tensor.untyped_storage() for tensor in _tensors(weights)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _attention(spec: DecoderSpec, layer: LayerWeights) -> int:
    projections = 2 * (spec.heads + spec.kv_heads) * spec.head_dim * spec.hidden_size
    norms = _norm(layer.attention_norm) + _norm(layer.post_attention_norm)
    heads = sum(norm.numel() for norm in (layer.query_norm, layer.key_norm) if norm is not None)
    return projections + _bias(layer.qkv) + _bias(layer.attention_output) + norms + heads


def _feed_forward(spec: DecoderSpec, layer: LayerWeights) -> int:
    projections = (3 if spec.gated_mlp else 2) * spec.mlp_size * spec.hidden_size
    return projections + _bias(layer.up) + _bias(layer.down) + _norm(layer.mlp_norm) + _norm(layer.post_mlp_norm)


def _norm(norm: Norm | None) -> int:
    return sum(tensor.numel() for tensor in _tensors(norm))


def _bias(linear: Linear) -> int:
    return 0 if linear.bias is None else linear.bias.numel()


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, in its fields and in their lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
