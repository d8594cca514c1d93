"""The one interface between the decoder and the arithmetic, and the data that crosses it.

A backend knows tensors, and nothing of requests, families or files. Everything it needs is an argument:
there is no ambient context, so that a captured graph can own its layout and its cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

ActivationKind = Literal["silu", "gelu", "gelu_tanh"]


class LayerCache(NamedTuple):
    """One layer's paged keys and values, each [blocks, block_size, kv_heads, head_dim]."""

    keys: Tensor
    values: Tensor


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
        self.blocks = blocks
        self.block_size = block_size
        shape = (layers, 2, blocks, block_size, kv_heads, head_dim)
        # Not zeroed: what no request has written yet then takes no memory of the machine, and nobody reads it.
        self._storage = torch.empty(shape, dtype=dtype, device=device)
        self.layers = [LayerCache(keys, values) for keys, values in self._storage.unbind(0)]


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Where the tokens of a ragged batch lie: which sequence, which position, which cache slot.

    The tokens of all sequences stand one after another. Sequences with fewer new tokens come first, so that a
    backend may treat the leading `singles` of them (decoding) apart from the rest (prompts).
    """

    query_starts: Tensor
    """[seqs + 1] int32: sequence i has the tokens query_starts[i] to query_starts[i + 1] - 1."""
    context_lens: Tensor
    """[seqs] int32: tokens of each sequence in the cache once this batch's own are stored."""
    block_table: Tensor
    """[seqs, blocks] int32: the cache blocks of each sequence in order; the padding is 0."""
    slots: Tensor
    """[tokens] int64: where each token's key and value go: block * block_size + offset."""
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


@dataclass(frozen=True, slots=True)
class Linear:
    """A projection as a backend packed it: y = x W^T + bias."""

    weight: Tensor
    """[out, in] in the reference backend; another may pack it otherwise."""
    bias: Tensor | None = None
    packed: object = field(default=None)
    """What a backend's `pack` keeps beside or in place of `weight`."""


@dataclass(frozen=True, slots=True)
class SamplingBatch:
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

    def pack(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Take a projection's weight [out, in] and bias [out] into the form `linear` reads."""

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


def load_backend(device: torch.device, name: str = "auto") -> Backend:
    """The backend called `name`, or the best one for `device` if it is "auto".

    Raises ValueError for a name this build does not have.
    """
    from kernels.reference import ReferenceBackend

    known: Sequence[str] = ("auto", "reference")
    if name not in known:
        raise ValueError(f"unknown backend {name!r}: this build has {', '.join(known)}")
    return ReferenceBackend()
