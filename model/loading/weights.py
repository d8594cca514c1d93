"""Loads a decoder's weights one projection at a time in each of a few threads, so that no two whole copies exist."""

import hashlib
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.backend import Backend, Fp8Weight, Linear, QuantizedWeight
from model.checkpoint.checkpoint import Checkpoint, RawTensor
from model.checkpoint.errors import label
from model.checkpoint.fp8_quantized import Fp8Quantized
from model.checkpoint.group_quantized import GroupQuantized
from model.families.names import Projection, QkvLayout, TensorNames
from model.families.reader import tensor_names
from model.loading.fp8_stack import stack_fp8
from model.loading.quantized_stack import stack_quantized
from model.loading.rounding import rounded
from model.loading.tensor_reader import CheckpointReader, TensorReader
from model.runner_config import Rounding
from model.spec import DecoderSpec
from model.weights import DecoderWeights, LayerWeights, Norm

ROWS_AT_ONCE = 1024
"""Rows of a matrix that are converted to float32 at a time to compute its digest."""
AT_ONCE = 2
"""Layers that are read at the same time, since most of what it takes to read one uses a single core."""

log = logging.getLogger(__name__)


def load_weights(
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    backend: Backend,
    dtype: torch.dtype,
    device: torch.device,
    *,
    rounding: Rounding = "none",
) -> DecoderWeights:
    """Load the weights of `spec` from a checkpoint, in `dtype`, on `device`, packed by `backend`.

    Dense projections are rounded first, by `rounding`, and tables too if it is 8bit. Raises CheckpointError if a tensor
    is missing, has another shape than the spec says, or has no place in the model.
    """
    names = tensor_names(checkpoint)
    ignored = [*names.ignored, *([re.escape(names.output_weight)] if spec.tied_embeddings else [])]
    tensors = CheckpointReader(checkpoint, dtype, device)
    tensors.refuse_missing(ignored)
    if spec.tied_embeddings and _output_differs(names, checkpoint):
        log.warning(
            "%s: %s is not the embedding, to which the configuration ties it: it is used as the file has it",
            label(checkpoint.name),
            names.output_weight,
        )
        spec = replace(spec, tied_embeddings=False)
    weights = assemble_weights(spec, names, tensors, backend, rounding=rounding)
    tensors.refuse_unread(ignored)
    return weights


def _output_differs(names: TensorNames, checkpoint: Checkpoint) -> bool:
    """Whether the file has both an embedding and an output projection, and their numbers differ."""
    both = (names.embedding_weight, names.output_weight)
    return {*both} <= {*checkpoint.tensor_names()} and len({_digest(checkpoint, name) for name in both}) > 1


def _digest(checkpoint: Checkpoint, name: str) -> bytes:
    """Digest of a tensor's shape and numbers, whichever dtype they are stored in.

    Comparing digests needs only one of two tensors in memory at a time.
    """
    raw = checkpoint.read(name)
    digest = hashlib.blake2b(repr(raw.data.shape).encode())
    for start in range(0, len(raw.data), ROWS_AT_ONCE):
        digest.update(RawTensor(raw.data[start : start + ROWS_AT_ONCE], raw.dtype).float32().data)
    return digest.digest()


def assemble_weights(
    spec: DecoderSpec, names: TensorNames, tensors: TensorReader, backend: Backend, *, rounding: Rounding = "none"
) -> DecoderWeights:
    """The weights of `spec`, read from `tensors` under `names` and packed by `backend`; `rounding` as above.

    Dense tensors are read straight into their place in a stack. `tensors` and `backend` are used by several threads.
    Raises the errors of `tensors`.
    """
    return _WeightLoader(spec, names, tensors, backend, rounding).decoder()


@dataclass(frozen=True, slots=True)
class _WeightLoader:
    """Assembles a decoder's weights, tensor by tensor."""

    spec: DecoderSpec
    names: TensorNames
    tensors: TensorReader
    backend: Backend
    rounding: Rounding

    def decoder(self) -> DecoderWeights:
        spec, names = self.spec, self.names
        hidden = spec.hidden_size
        embedding = self._embedding()
        position_embedding = None
        if spec.learned_positions:
            shape = (spec.max_context, hidden)
            position_embedding = self.tensors.load(f"{names.prefix}{names.position_embedding}.weight", shape)
        return DecoderWeights(
            embedding=embedding,
            position_embedding=position_embedding,
            embedding_norm=self._norm(names.prefix + names.embedding_norm) if spec.embedding_norm else None,
            layers=self._layers(),
            final_norm=self._norm(names.prefix + names.final_norm),
            output=self._output(embedding),
        )

    def _layers(self) -> list[LayerWeights]:
        names = self.names
        prefixes = [names.prefix + names.layer.format(index) for index in range(len(self.spec.layers))]
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            return [*pool.map(self._layer, prefixes)]
        finally:
            pool.shutdown(cancel_futures=True)  # After an error the other layers are not wanted.

    def _embedding(self) -> Tensor | Linear:
        name = self._embedding_name()
        if self.backend.embeds_packed:
            return self._table(name)
        return self.tensors.load(name, (self.spec.vocab_size, self.spec.hidden_size))

    def _output(self, embedding: Tensor | Linear) -> Linear:
        names = self.names
        if not self.spec.tied_embeddings:
            return self._table(names.output_weight)
        if isinstance(embedding, Linear):
            return embedding
        quantized = self._quantized([self._embedding_name()], [self.spec.vocab_size], self.spec.hidden_size, None)
        return self._pack(embedding if quantized is None else quantized, None, is_table=True)

    def _embedding_name(self) -> str:
        """Name of the embedding's tensor. A file with tied embeddings may store the matrix as the output projection."""
        embedding, output = self.names.embedding_weight, self.names.output_weight
        has_output_alone = self.tensors.has(output) and not self.tensors.has(embedding)
        return output if self.spec.tied_embeddings and has_output_alone else embedding

    def _table(self, name: str) -> Linear:
        shape = self.spec.vocab_size, self.spec.hidden_size
        quantized = self._quantized([name], [shape[0]], shape[1], None)
        return self._pack(self.tensors.load(name, shape) if quantized is None else quantized, None, is_table=True)

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
        # The offset is added in float32, whichever dtype the file has, as in the models' training.
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
        """Stack `parts` into one packed projection; part i is [rows[i], columns]."""
        names = [f"{part}.weight" for part in parts]
        quantized = None if self.names.transposed else self._quantized(names, rows, columns, kind)
        weight = self._stack(names, rows, columns, kind) if quantized is None else quantized
        biased = kind in self.names.biased or any(self.tensors.has(f"{part}.bias") for part in parts)
        bias = self._stack([f"{part}.bias" for part in parts], rows, None, kind) if biased else None
        return self._pack(weight, bias)

    def _pack(
        self, weight: Tensor | QuantizedWeight | Fp8Weight, bias: Tensor | None, *, is_table: bool = False
    ) -> Linear:
        if isinstance(weight, Tensor):
            weight = rounded(weight, self.rounding, is_table=is_table)
        return self.backend.pack(weight, bias)

    def _quantized(
        self, parts: Sequence[str], rows: Sequence[int], columns: int, kind: Projection | None
    ) -> QuantizedWeight | Fp8Weight | None:
        """The quantised stack of `parts`; None if the backend wants dense weights, or if a part is dense."""
        groups: list[GroupQuantized] = []
        floats: list[Fp8Quantized] = []
        if not (self.backend.keeps_quantized or self.backend.keeps_fp8):
            return None
        for name, count in zip(parts, rows, strict=True):
            match self.tensors.read_quantized(name, (count, columns)):
                case GroupQuantized() as part if self.backend.keeps_quantized and not floats:
                    groups.append(part)
                case Fp8Quantized() as part if self.backend.keeps_fp8 and not groups:
                    floats.append(part)
                case _:
                    return None

        def order(index: int, part: Tensor) -> Tensor:
            return self._ordered(index, part, kind)

        device = self.tensors.device
        return stack_quantized(groups, order, device) if groups else stack_fp8(floats, order, device)

    def _stack(self, parts: Sequence[str], rows: Sequence[int], columns: int | None, kind: Projection) -> Tensor:
        """The stack [sum(rows), columns] of dense weights, or [sum(rows)] of biases where `columns` is None."""
        inner = () if columns is None else (columns,)
        transposed = self.names.transposed and columns is not None
        shapes = [(*inner, count) if transposed else (count, *inner) for count in rows]
        for name, shape in zip(parts, shapes, strict=True):
            self.tensors.check(name, shape)
        stack = self.tensors.empty(sum(rows), *inner)
        for index, (name, shape, place) in enumerate(zip(parts, shapes, stack.split(list(rows)), strict=True)):
            stored = self.tensors.read(name, shape)
            ordered = self._ordered(index, stored.T if transposed else stored, kind)
            place.view(ordered.shape).copy_(ordered)
        return stack

    def _ordered(self, index: int, rows: Tensor, kind: Projection | None) -> Tensor:
        """Rows [out, ...] of a part in the order that the decoder reads; the view may have more dimensions."""
        if kind != "qkv":
            return rows
        return half_split(rows, self.names.qkv_layout, self.spec.head_dim, is_value=index == 2)


def half_split(rows: Tensor, layout: QkvLayout, head_dim: int, *, is_value: bool) -> Tensor:
    """A view of `rows` [heads * head_dim, ...], stored in `layout`, in the half_split order that the decoder reads.

    The view may have more dimensions; flattened into rows, it is in order.
    """
    match layout:
        case "half_split":
            return rows
        case "interleaved":
            return rows if is_value else rows.view(-1, head_dim // 2, 2, *rows.shape[1:]).transpose(1, 2)
        case "per_head":
            return rows.view(-1, 3, head_dim, *rows.shape[1:]).transpose(0, 1)
