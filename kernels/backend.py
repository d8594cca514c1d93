"""The interface between the decoder and the arithmetic, and the data that crosses it.

A backend knows tensors, and nothing of requests, families or files. Everything it needs is an argument;
there is no ambient context, so a captured graph can own its layout and its cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from kernels.host_memory import large_pages
from kernels.tensor_record import TensorRecord

T = TypeVar("T")

ActivationKind = Literal["silu", "gelu", "gelu_tanh"]


class LayerCache(NamedTuple):
    """One layer's paged keys and values, each [blocks, block_size, kv_heads, head_dim].

    Within a block, a backend may store the numbers in an order of its own.

    An FP8 (e4m3) cache stores each key or value divided by its head's scale, rounded, and clamped to the largest
    finite e4m3 number, 448.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    """[kv_heads] float32; None where the cache has the model's dtype."""
    value_scales: Tensor | None = None
    """[kv_heads] float32; None where the cache has the model's dtype."""


class KVCache:
    """Keys and values of every layer, in blocks of `block_size` tokens; block tables hold indices of these blocks."""

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
        """Allocate the blocks, uninitialised. With float8_e4m3fn as `dtype`, every scale begins as 1.

        A loader that knows the range of the model's keys and values overwrites the scales.
        """
        self.blocks = blocks
        self.block_size = block_size
        shape = (layers, 2, blocks, block_size, kv_heads, head_dim)
        # Not zeroed: pages that no request has written take no physical memory, and nothing reads them.
        self._storage = (
            large_pages(prod(shape) * dtype.itemsize).view(dtype).view(shape)
            if device.type == "cpu"
            else torch.empty(shape, dtype=dtype, device=device)
        )
        scales = torch.ones(layers, 2, kv_heads, device=device) if dtype == torch.float8_e4m3fn else None
        self.layers = [
            LayerCache(*self._storage[layer], *([] if scales is None else scales[layer])) for layer in range(layers)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLayout(TensorRecord):
    """The sequence, position and cache slot of each token of a ragged batch.

    The tokens of all sequences are concatenated. Sequences with fewer new tokens come first, so that a backend may
    treat the leading `singles` sequences (decoding) apart from the rest (prompts).

    A captured graph pads its batch with sequences of context length 0. Their tokens have slot -1 and are not stored;
    their attention output is 0. Such a sequence has one token among the `singles`, and any number behind them.
    """

    query_starts: Tensor
    """[seqs + 1] int32: the new tokens of sequence i are query_starts[i] to query_starts[i + 1] - 1."""
    context_lens: Tensor
    """[seqs] int32: cached tokens of each sequence, counting the new ones of this batch."""
    block_table: Tensor
    """[seqs, blocks] int32: the cache blocks of each sequence in order, padded with 0."""
    slots: Tensor
    """[tokens] int64: each token's place in the cache, block * block_size + offset; -1 stores nothing."""
    positions: Tensor
    """[tokens] int64: each token's position in its sequence, from 0."""
    singles: int
    """The number of leading sequences that have exactly one new token."""
    max_query: int
    """The largest number of new tokens in a sequence."""
    max_context: int
    """The largest of `context_lens`, or a bound on it."""


class Rotation(NamedTuple):
    """Cosine and sine of each token's rotary angles, each [tokens, rope_dim / 2] float32.

    The first rope_dim dimensions of a head are rotated in pairs (i, i + rope_dim / 2); the others are left as they
    are (RoPE: Su et al., arXiv 2104.09864).
    """

    cos: Tensor
    sin: Tensor


class HeadNorms(NamedTuple):
    """RMS norm of every query head and key head before rotation; the weights are [head_dim]."""

    query: Tensor
    key: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """One layer's variations of causal attention, softmax(scale * q.k) v (Vaswani et al., arXiv 1706.03762)."""

    scale: float
    window: int | None = None
    """The query at position i sees the keys at i - window + 1 to i; None: all keys up to i."""
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap) (Gemma 2, arXiv 2408.00118)."""
    alibi_slopes: Tensor | None = None
    """[heads] float32: slope * (j - i) is added to the score of query i and key j (Press et al., arXiv 2108.12409)."""
    sinks: Tensor | None = None
    """[heads] float32: one more logit in each head's softmax denominator, without a value (gpt-oss)."""


class LayerQueries(NamedTuple):
    """Some queries of one layer, and the keys and heads whose attention weights are wanted of them."""

    q: Tensor
    """[rows, all heads, head_dim]."""
    cache: LayerCache
    heads: Sequence[int]
    """The heads that are wanted."""
    options: AttentionOptions


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight [out, in] in groups of `group_size` neighbours along `in`, each group with its own scale.

    w = scale * (code - zero) + offset. GGUF's blocks and the group-quantised formats can all be written this way.
    """

    codes: Tensor
    """uint8: [out, in] for 8 bits; [out, in / 2] for 4 bits, with element 2i in the low half of byte i and element
    2i + 1 in the high half."""
    scales: Tensor
    """[out, in / group_size] float16."""
    offsets: Tensor | None
    """[out, in / group_size] float32; None if every offset is 0.

    The asymmetric formats subtract an integer zero, offset = -scale * zero: a product that float32 holds exactly and
    float16 rounds, by up to 1/8 of a step with 8 bits, which adds up over a group's inputs.
    """
    zero: int
    """The code that is subtracted: 8 or 128 in symmetric formats, usually 0 where there are offsets."""
    bits: Literal[4, 8]
    group_size: int
    """A power of two, at least 16."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, width = self.codes.shape
        return rows, width * 8 // self.bits


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A weight [out, in] of 8-bit floats in blocks of `height` outputs and `width` inputs: w = scale * number."""

    numbers: Tensor
    """[out, in] float8_e4m3fn."""
    scales: Tensor
    """[ceil(out / height), ceil(in / width)] float32."""
    height: int
    width: int
    """A power of two from 32 on; or `in`, where each row has one scale."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self.numbers.shape
        return rows, columns


class OpaqueWeight:
    """A weight in a form that only the backend that packed it can read."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Linear:
    """A projection y = x W^T + bias, in the form that a backend packed it into."""

    weight: Tensor | QuantizedWeight | Fp8Weight | OpaqueWeight
    """[out, in] in the reference backend; other backends may pack it into another form."""
    bias: Tensor | None = None
    """[out]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingBatch(TensorRecord):
    """The sampling parameters of each row of a batch of logits. Every tensor is [rows]."""

    temperature: Tensor
    """float32; 0 chooses the likeliest token."""
    top_k: Tensor
    """int64; 0 turns the filter off."""
    top_p: Tensor
    """float32; 1 turns the filter off."""
    min_p: Tensor
    """float32; 0 turns the filter off."""
    seed: Tensor
    """int64 in [0, 2**63)."""
    counter: Tensor
    """int64: the index, within its request, of the token to draw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts(TensorRecord):
    """The tokens that came up in requests, a row for each request, and how often each was drawn.

    A row has every token once, those of the prompt and the drawn ones, in no order.
    """

    tokens: Tensor
    """[requests, capacity] int32."""
    times: Tensor
    """[requests, capacity] int32: the number of times that the token was drawn; 0 if it is in the prompt alone."""
    lengths: Tensor
    """[requests] int32: the number of tokens in the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalties(TensorRecord):
    """The penalties of some rows of logits. Every tensor is [penalised rows]."""

    rows: Tensor
    """int64: the rows of the logits, each once."""
    requests: Tensor
    """int64: the rows of the requests in a `TokenCounts`."""
    repetition: Tensor
    """float32; 1 turns the penalty off."""
    presence: Tensor
    """float32; 0 turns the penalty off."""
    frequency: Tensor
    """float32; 0 turns the penalty off."""


class Weighed(NamedTuple):
    """The weights in proportion to which the tokens of some rows are drawn, and what they come to."""

    weights: Tensor
    """[rows, vocab] float32, relative to the highest; 0 for tokens that are never drawn."""
    figures: Tensor
    """[rows, 4] float64: the sum of the weights; the number of those above 0; the share that these tokens had of the
    weights before, 1 if there are none; the distribution's entropy in nats."""


class Backend(Protocol):
    """The decoder's arithmetic. Activations are [tokens, ...] in the model's dtype."""

    name: str
    keeps_quantized: bool
    """Whether loaders should hand quantised weights to `pack` as they are; otherwise they dequantise them first."""
    keeps_fp8: bool
    """The same for weights of 8-bit floats; a backend that does not keep them is given none."""
    embeds_packed: bool
    """Whether `embed` accepts a packed table, so that one tied to the output projection is stored only once."""
    cache_dtype: torch.dtype | None
    """The preferred dtype of cached keys and values; None: the model's dtype."""
    block_size: int
    """The preferred number of tokens in a block of the KV cache."""
    capturable: bool
    """Whether a CUDA graph can hold the operations: no operation makes the host wait for a value from the device."""

    def pack(self, weight: Tensor | QuantizedWeight | Fp8Weight, bias: Tensor | None) -> Linear:
        """Convert a projection's weight [out, in] and bias [out] to the form that `linear` reads."""

    def embed(
        self, tokens: Tensor, positions: Tensor, table: Tensor | Linear, scale: float, learned: Tensor | None
    ) -> Tensor:
        """`scale * table[tokens] + learned[positions]`, [tokens, hidden].

        `tokens` and `positions` are [tokens] int64, `table` is [vocab, hidden], `learned` is [max_context, hidden],
        or None for a model without learned positions. `table` may be packed if `embeds_packed`.
        """

    def rotation(self, frequencies: Tensor, magnitude: float, positions: Tensor) -> Rotation:
        """`magnitude * cos(angles)` and `magnitude * sin(angles)`, where angles = positions * frequencies.

        `frequencies` are [rope_dim / 2] float32, `positions` [tokens] int64.
        """

    def linear(self, x: Tensor, weight: Linear) -> Tensor:
        """X W^T + bias: [tokens, in] -> [tokens, out]."""

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Add `x` to the residual stream and return (RMS norm of the stream, the stream), both shaped as `x`.

        The stream begins as `x` if `residual` is None (Zhang and Sennrich, arXiv 1910.07467).
        """

    def add_layer_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """`add_rms_norm` with a layer norm, which subtracts the mean and adds a bias (Ba et al., arXiv 1607.06450)."""

    def rotate_and_store(
        self,
        qkv: Tensor,
        heads: int,
        norms: HeadNorms | None,
        rotation: Rotation | None,
        cache: LayerCache,
        slots: Tensor,
    ) -> Tensor:
        """Split `qkv` into q, k and v, norm and rotate q and k, store k and v in the cache at `slots`, return q.

        `qkv` is [tokens, (heads + 2 kv_heads) * head_dim], `slots` are as in `BatchLayout`, and the queries that are
        returned are [tokens, heads, head_dim]. A step whose argument is None is left out.
        """

    def attend(self, q: Tensor, cache: LayerCache, layout: BatchLayout, options: AttentionOptions) -> Tensor:
        """Causal attention of queries [tokens, heads, head_dim] over the paged cache; returns the same shape."""

    def attention_weights(self, layers: Sequence[LayerQueries], positions: Tensor, blocks: Tensor) -> Tensor:
        """The weights with which `attend` adds up values, for some queries of one sequence in some layers.

        The queries are at `positions` [rows] int64, and their keys lie in the cache's `blocks` [blocks] int32. Returns
        weights [heads of all layers, rows, blocks * block_size] float32, with 0 for keys that are not seen.
        """

    def activation(self, x: Tensor, kind: ActivationKind) -> Tensor:
        """The activation of each element of `x`, which may have any shape."""

    def gated_activation(self, gate_up: Tensor, kind: ActivationKind) -> Tensor:
        """act(first half) * second half of each row: [tokens, 2 * size] -> [tokens, size]."""

    def count_tokens(self, counts: TokenCounts, requests: Tensor, tokens: Tensor) -> None:
        """Count one more drawn token of each of some `requests` [rows] int64, which are distinct rows of `counts`.

        `tokens` are [rows] int64; a negative one counts as none.
        """

    def penalise(self, logits: Tensor, counts: TokenCounts, penalties: Penalties) -> None:
        """Penalise the tokens that came up, in rows of `logits` [rows, vocab] float32: contiguous, and edited in place.

        A positive logit is divided by the repetition penalty, any other one multiplied by it (Keskar et al., arXiv
        1909.05858). If the token was drawn n > 0 times, presence + n * frequency is then subtracted.
        """

    def restrict(self, logits: Tensor, rows: Tensor, masks: Tensor) -> None:
        """Write -inf over the logits that masks ban, in `rows` [masks] int64 of `logits` [rows, vocab] float32.

        `masks` are [masks, bytes] uint8 with at least a bit for each token, 0 where it is banned; token 0 is the lowest
        bit of byte 0. The logits are contiguous.
        """

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """Draw a token from each row of `logits`, [rows, vocab] float32.

        Returns int64 [rows]; -1 for a row that has a NaN or +inf, or no finite logit.
        """

    def weigh(self, logits: Tensor, batch: SamplingBatch, before: Weighed | None) -> Weighed:
        """The weights by which `sample` draws from `logits` [rows, vocab] float32; `before` are some of the same rows.

        In a row from which nothing can be drawn they are 0, and their figures have no meaning.
        """

    def log_probabilities(self, logits: Tensor, tokens: Tensor, most: int) -> Tensor:
        """Log-probabilities of `tokens` [rows] int64 and of each row's likeliest tokens, under softmax(logits).

        `logits` are [rows, vocab] float32, `most` is at most their number in a row. Each row of the result, [rows,
        2 + 2 * most] float64, has the token's log-probability and its rank, which is 1 + the number of larger logits;
        then the `most` highest log-probabilities in descending order, then the ids of their tokens. Lower ids come
        first where logits are equal. In a row that has a NaN or +inf, or no finite logit, every log-probability is a
        NaN, and all tokens count as equal.
        """


@runtime_checkable
class RecordingBackend(Backend, Protocol):
    """A backend that repeats what it was once asked for, on threads of its own, without the decoder's Python."""

    def record(self, function: Callable[[], T]) -> tuple[Any, T]:
        """A program of the operations that `function` asks for, not run yet, and what the function returned.

        The tensors that it makes have room for as many rows as those it was given; `replay` says how many there are.
        A residual stream that is given to a norm has a later one's numbers after a replay.
        """
        ...

    def keep(self, x: Tensor, rows: int) -> Tensor:
        """Copies [rows, ...] of rows of x [tokens, ...] float32 that `replay` names. Only while recording."""
        ...

    def narrow(self, x: Tensor, rows: int) -> Tensor:
        """Copies [rows, ...] of rows of x [tokens, ...] float32 that `replay` chooses. Only while recording, and once.

        Operations that are recorded after this one have these rows alone. A replay that chooses none leaves them out.
        """
        ...

    def replay(
        self,
        program: Any,
        tokens: Tensor,
        layout: BatchLayout,
        places: Tensor | None = None,
        chosen: Tensor | None = None,
        sampling: SamplingBatch | None = None,
    ) -> Tensor | None:
        """Run a recorded forward pass for a batch of up to as many tokens as it was recorded with.

        `places` [kept] int64 are the tokens whose rows are kept, `chosen` [rows] int64 those of `narrow`; None: none.

        With `sampling` the recording's own draws are made by these settings; returns the tokens [rows] int64.
        """
        ...
