"""The one interface between the decoder and the arithmetic, and the data that crosses it.

A backend knows tensors, and nothing of requests, families or files. Everything it needs is an argument:
there is no ambient context, so that a captured graph can own its layout and its cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from kernels.tensor_record import TensorRecord

ActivationKind = Literal["silu", "gelu", "gelu_tanh"]


class LayerCache(NamedTuple):
    """One layer's paged keys and values, each [blocks, block_size, kv_heads, head_dim].

    In an FP8 (e4m3) cache what is stored is the key or value divided by its head's scale, rounded, and clamped to
    the largest finite number of the format, 448.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    """[kv_heads] float32; None in a cache of the model's dtype."""
    value_scales: Tensor | None = None


class KVCache:
    """Keys and values of every layer, in blocks of `block_size` tokens that block tables point into."""

    def __init__(
        self,
        *,
        layers: int,
        blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """A `dtype` of float8_e4m3fn comes with scales of 1, which whoever knows the model's range overwrites."""
        self.blocks = blocks
        self.block_size = block_size
        shape = (layers, 2, blocks, block_size, kv_heads, head_dim)
        # Not zeroed: what no request has written yet then takes no memory of the machine, and nobody reads it.
        self._storage = torch.empty(shape, dtype=dtype, device=device)
        scales = torch.ones(layers, 2, kv_heads, device=device) if dtype == torch.float8_e4m3fn else None
        self.layers = [
            LayerCache(*self._storage[layer], *([] if scales is None else scales[layer])) for layer in range(layers)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLayout(TensorRecord):
    """Where the tokens of a ragged batch lie: which sequence, which position, which cache slot.

    The tokens of all sequences stand one after another. Sequences with fewer new tokens come first, so that a
    backend may treat the leading `singles` of them (decoding) apart from the rest (prompts).

    A captured graph pads its batch: a sequence with a context of 0 is padding. Its one token has the slot -1 and is
    not stored; its attention is 0.
    """

    query_starts: Tensor
    """[seqs + 1] int32: sequence i has the tokens query_starts[i] to query_starts[i + 1] - 1."""
    context_lens: Tensor
    """[seqs] int32: tokens of each sequence in the cache once this batch's own are stored."""
    block_table: Tensor
    """[seqs, blocks] int32: the cache blocks of each sequence in order; the padding is 0."""
    slots: Tensor
    """[tokens] int64: where each token's key and value go: block * block_size + offset; -1: nowhere."""
    positions: Tensor
    """[tokens] int64: each token's position in its sequence, from 0."""
    singles: int
    """How many leading sequences have exactly one token."""
    max_query: int
    """The most new tokens of any sequence."""
    max_context: int
    """The largest of `context_lens`."""


class Rotation(NamedTuple):
    """Cosine and sine of each token's rotary angles, each [tokens, rope_dim / 2] float32.

    The first rope_dim dimensions of a head are rotated in pairs (i, i + rope_dim / 2); the rest pass.
    """

    cos: Tensor
    sin: Tensor


class HeadNorms(NamedTuple):
    """RMS norm of every query and key head before rotation: weights [head_dim]."""

    query: Tensor
    key: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What a layer's attention does beside softmax(scale * q.k) v under the causal mask."""

    scale: float
    window: int | None = None
    """A query at i sees keys at j with i - window < j <= i."""
    softcap: float | None = None
    alibi_slopes: Tensor | None = None
    """[heads] float32: scores get slope * (j - i) added."""
    sinks: Tensor | None = None
    """[heads] float32: each head's extra logit that takes its part of the softmax and has no value (gpt-oss)."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight [out, in] in groups of `group_size` neighbours along `in`, each group with a scale of its own.

    w = scale * (code - zero) + offset. What GGUF's blocks and the group-quantised formats hold is this, in one form
    or another.
    """

    codes: Tensor
    """uint8: [out, in] of 8 bits, or [out, in / 2] of 4 bits, element 2i in the low half of byte i, 2i + 1 above it."""
    scales: Tensor
    """[out, in / group_size] float16."""
    offsets: Tensor | None
    """As `scales`; None where every offset is 0."""
    zero: int
    """The code that stands for 0 where there is no offset: 8 or 128 in symmetric formats."""
    bits: Literal[4, 8]
    group_size: int
    """A power of two, at least 16."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, width = self.codes.shape
        return rows, width * 8 // self.bits


class OpaqueWeight:
    """A weight in a form that only the backend knows that packed it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Linear:
    """A projection as a backend packed it: y = x W^T + bias."""

    weight: Tensor | QuantizedWeight | OpaqueWeight
    """[out, in] in the reference backend; another may pack it otherwise."""
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingBatch(TensorRecord):
    """How each row of a batch of logits is drawn from. Every tensor is [rows]."""

    temperature: Tensor
    """float32; 0 takes the likeliest token."""
    top_k: Tensor
    """int64; 0 is off."""
    top_p: Tensor
    """float32; 1 is off."""
    min_p: Tensor
    """float32; 0 is off."""
    seed: Tensor
    """int64 in [0, 2**63)."""
    counter: Tensor
    """int64: the index of the token to draw within its request."""


class Backend(Protocol):
    """The decoder's arithmetic. Activations are [tokens, ...] in the model's dtype."""

    name: str
    keeps_quantized: bool
    """Whether quantised weights are best packed as they are, rather than dequantised by whoever loads them."""
    embeds_packed: bool
    """Whether `embed` reads what `pack` made: a table tied to the output projection then takes its memory once."""
    cache_dtype: torch.dtype | None
    """What it best keeps keys and values in, if not in the model's dtype."""
    capturable: bool
    """Whether a CUDA graph can hold its operations: none lets the host look at what the device computes."""

    def pack(self, weight: Tensor | QuantizedWeight, bias: Tensor | None) -> Linear:
        """Take a projection's weight [out, in] and bias [out] into the form `linear` reads."""

    def embed(
        self, tokens: Tensor, positions: Tensor, table: Tensor | Linear, scale: float, learned: Tensor | None
    ) -> Tensor:
        """Rows of the table [vocab, hidden] for token ids [tokens] int64, scaled: [tokens, hidden].

        `learned`, [max_context, hidden], has a row for each position that is added to it.
        """

    def rotation(self, frequencies: Tensor, magnitude: float, positions: Tensor) -> Rotation:
        """The angles positions * frequencies, [tokens] int64 and [rope_dim / 2] float32, cosines and sines scaled."""

    def linear(self, x: Tensor, weight: Linear) -> Tensor:
        """[tokens, in] -> [tokens, out]."""

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Add `x` to the residual stream (None: it starts with x); return (its RMS norm, the stream)."""

    def add_layer_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """As `add_rms_norm`, with mean subtraction and a bias."""

    def rotate_and_store(
        self,
        qkv: Tensor,
        heads: int,
        norms: HeadNorms | None,
        rotation: Rotation | None,
        cache: LayerCache,
        slots: Tensor,
    ) -> Tensor:
        """Split [tokens, (heads + 2 kv_heads) * head_dim], norm and rotate q and k, store k and v.

        Returns the queries [tokens, heads, head_dim].
        """

    def attend(self, q: Tensor, cache: LayerCache, layout: BatchLayout, options: AttentionOptions) -> Tensor:
        """Causal attention of [tokens, heads, head_dim] over the paged cache; the same shape back."""

    def activation(self, x: Tensor, kind: ActivationKind) -> Tensor:
        """Elementwise, any shape."""

    def gated_activation(self, gate_up: Tensor, kind: ActivationKind) -> Tensor:
        """[tokens, 2 * size] -> [tokens, size]: act(first half) * second half."""

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """Draw a token of each row of [rows, vocab] float32.

        Returns int64 [rows]; -1 where a row has a NaN or no finite logit.
        """


@runtime_checkable
class RecordingBackend(Backend, Protocol):
    """A backend that repeats what it was once asked for, on threads of its own, without the decoder's Python."""

    def record(self, function: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """What `function` asks of this backend as a program, not run yet, and the tensor that it leaves its result in.

        The tensors that it makes have room for as many rows as those it was given; `replay` says how many there are.
        """
        ...

    def replay(self, program: Any, tokens: Tensor, layout: BatchLayout) -> None:
        """Run a recorded forward pass for a batch of up to as many tokens as it was recorded with."""
        ...
