"""A decoder's weights in memory, and how they come from a checkpoint: one tensor at a time, never two copies."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.backend import Backend, Linear
from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.errors import CheckpointError, label
from model.families import tensor_names
from model.spec import DecoderSpec
from model.tensor_names import Projection, QkvLayout, TensorNames


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


def load_weights(
    spec: DecoderSpec, checkpoint: Checkpoint, backend: Backend, dtype: torch.dtype, device: torch.device
) -> DecoderWeights:
    """Read the weights that `spec` calls for, in `dtype`, on `device`, packed by `backend`.

    Tensors are read one at a time, straight into their place in a stack. Raises CheckpointError for a tensor
    that is missing, has another shape than the spec says, or is there but belongs to no known place.
    """
    names = tensor_names(checkpoint)
    tensors = _TensorReader(checkpoint, dtype, device)
    weights = _WeightLoader(spec, names, tensors, backend).decoder()
    tensors.refuse_unread([*names.ignored, *([re.escape(f"{names.output}.weight")] if spec.tied_embeddings else [])])
    return weights


class _TensorReader:
    """Copies tensors out of a checkpoint, and remembers which."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._unread = set(checkpoint.tensor_names())

    def has(self, name: str) -> bool:
        return name in self._checkpoint.tensor_names()

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Before anything is allocated for it."""
        actual = self._checkpoint.shape(name)
        if actual != shape:
            raise self._error(
                f"the tensor {label(name)} has the shape {actual}, and the configuration asks for {shape}"
            )

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor in the type of the file."""
        self.check(name, shape)
        self._unread.discard(name)
        raw = self._checkpoint.read(name)
        if raw.dtype == "BF16":
            return torch.from_numpy(raw.data.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(raw.data)

    def load(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor in the type and on the device of the model."""
        return self.read(name, shape).to(self._device, self._dtype)

    def refuse_unread(self, ignored: Sequence[str]) -> None:
        strays = sorted(name for name in self._unread if not any(re.fullmatch(one, name) for one in ignored))
        if strays:
            raise self._error(f"{len(strays)} tensors have no place in this model, {label(strays[0])} first")

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{label(self._checkpoint.name)}: {what}")


@dataclass(frozen=True, slots=True)
class _WeightLoader:
    """Puts together what a decoder is made of, tensor by tensor."""

    spec: DecoderSpec
    names: TensorNames
    tensors: _TensorReader
    backend: Backend

    def decoder(self) -> DecoderWeights:
        spec, names = self.spec, self.names
        hidden = spec.hidden_size
        embedding = self.tensors.load(f"{names.prefix}{names.embedding}.weight", (spec.vocab_size, hidden))
        position_embedding = None
        if spec.learned_positions:
            shape = (spec.max_context, hidden)
            position_embedding = self.tensors.load(f"{names.prefix}{names.position_embedding}.weight", shape)
        return DecoderWeights(
            embedding=embedding,
            position_embedding=position_embedding,
            embedding_norm=self._norm(names.prefix + names.embedding_norm) if spec.embedding_norm else None,
            layers=[self._layer(names.prefix + names.layer.format(index)) for index in range(len(spec.layers))],
            final_norm=self._norm(names.prefix + names.final_norm),
            output=self._output(embedding),
        )

    def _output(self, embedding: Tensor) -> Linear:
        if self.spec.tied_embeddings:
            return self.backend.pack(embedding, None)
        return self.backend.pack(self.tensors.load(f"{self.names.output}.weight", tuple(embedding.shape)), None)

    def _layer(self, prefix: str) -> LayerWeights:
        spec, names = self.spec, self.names
        attention_size = spec.heads * spec.head_dim
        return LayerWeights(
            attention_norm=self._norm(prefix + names.attention_norm),
            qkv=self._qkv(prefix),
            query_norm=self._rms_weight(prefix + names.query_norm, spec.head_dim) if spec.qk_norm else None,
            key_norm=self._rms_weight(prefix + names.key_norm, spec.head_dim) if spec.qk_norm else None,
            attention_output=self._projection(
                "attention_output", [prefix + names.attention_output], [spec.hidden_size], attention_size
            ),
            post_attention_norm=self._norm(prefix + names.post_attention_norm) if spec.post_norms else None,
            mlp_norm=self._norm(prefix + names.mlp_norm),
            up=self._up(prefix),
            down=self._projection("down", [prefix + names.down], [spec.hidden_size], spec.mlp_size),
            post_mlp_norm=self._norm(prefix + names.post_mlp_norm) if spec.post_norms else None,
        )

    def _norm(self, name: str) -> Norm:
        size = self.spec.hidden_size
        if self.spec.norm == "rms":
            return Norm(self._rms_weight(name, size))
        return Norm(self.tensors.load(f"{name}.weight", (size,)), self.tensors.load(f"{name}.bias", (size,)))

    def _rms_weight(self, name: str, size: int) -> Tensor:
        stored = self.tensors.read(f"{name}.weight", (size,))
        # The offset is added in float32, whatever the file has: that is how the models were trained.
        weight = self.tensors.empty(size)
        weight.copy_(stored.float() + self.names.norm_offset)
        return weight

    def _qkv(self, prefix: str) -> Linear:
        spec, names = self.spec, self.names
        rows = [count * spec.head_dim for count in (spec.heads, spec.kv_heads, spec.kv_heads)]
        parts = [prefix + name for name in names.qkv]
        return self._projection("qkv", parts, rows if len(parts) > 1 else [sum(rows)], spec.hidden_size)

    def _up(self, prefix: str) -> Linear:
        parts = [prefix + name for name in self.names.up]
        rows = (2 if self.spec.gated_mlp else 1) * self.spec.mlp_size
        return self._projection("up", parts, [rows // len(parts)] * len(parts), self.spec.hidden_size)

    def _projection(self, kind: Projection, parts: Sequence[str], rows: Sequence[int], columns: int) -> Linear:
        """Stack `parts`, which have `rows` outputs each."""
        weight = self._stack([f"{part}.weight" for part in parts], rows, columns, kind)
        biased = kind in self.names.biased or any(self.tensors.has(f"{part}.bias") for part in parts)
        bias = self._stack([f"{part}.bias" for part in parts], rows, None, kind) if biased else None
        return self.backend.pack(weight, bias)

    def _stack(self, parts: Sequence[str], rows: Sequence[int], columns: int | None, kind: Projection) -> Tensor:
        """Weights, or biases if there are no columns."""
        inner = () if columns is None else (columns,)
        transposed = self.names.transposed and columns is not None
        shapes = [(*inner, count) if transposed else (count, *inner) for count in rows]
        for name, shape in zip(parts, shapes, strict=True):
            self.tensors.check(name, shape)
        stack = self.tensors.empty(sum(rows), *inner)
        for index, (name, shape, place) in enumerate(zip(parts, shapes, stack.split(list(rows)), strict=True)):
            stored = self.tensors.read(name, shape)
            ordered = stored.T if transposed else stored
            if kind == "qkv":
                ordered = half_split(ordered, self.names.qkv_layout, self.spec.head_dim, is_value=index == 2)
            place.view(ordered.shape).copy_(ordered)
        return stack


def half_split(rows: Tensor, layout: QkvLayout, head_dim: int, *, is_value: bool) -> Tensor:
    """A view of [heads * head_dim, ...] with rows in the order that the decoder reads, in more dimensions."""
    match layout:
        case "half_split":
            return rows
        case "interleaved":
            return rows if is_value else rows.view(-1, head_dim // 2, 2, *rows.shape[1:]).transpose(1, 2)
        case "per_head":
            return rows.view(-1, 3, head_dim, *rows.shape[1:]).transpose(0, 1)
