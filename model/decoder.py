"""The decoder: one forward pass for every family, directed by a `DecoderSpec`.

It knows the mathematics of a transformer (Vaswani et al., arXiv 1706.03762, pre-norm) and nothing of checkpoints,
requests or sampling.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.backend import (
    AttentionOptions,
    Backend,
    BatchLayout,
    HeadNorms,
    KVCache,
    LayerCache,
    Rotation,
    SamplingBatch,
)
from model.positions import alibi_slopes, rope_frequencies
from model.spec import DecoderSpec, LayerSpec, RopeSpec
from model.weights import DecoderWeights, LayerWeights, Norm


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor with a row for each token of a batch, or only for some. Later operations may overwrite it."""

    tensor: Tensor
    kept: Tensor | None = None
    """[tokens] int64: the index of each token's row in the tensor, where it has one; None: each has its own index."""

    def at(self, places: Tensor) -> Tensor:
        """Copies of the rows of the tokens at `places`, int64."""
        return self.tensor.index_select(0, places if self.kept is None else self.kept[places])


class Probe(Protocol):
    """Is shown some tokens of a forward pass while it runs."""

    @property
    def places(self) -> Tensor:
        """[wanted] int64, on the CPU: indices in the batch of the tokens that are shown."""

    def attention(self, layer: int, q: Rows, cache: LayerCache, options: AttentionOptions) -> None:
        """Queries [heads, head_dim] of a layer, once all keys are in the cache and before values are added."""

    def stream(self, residual: Rows) -> None:
        """The residual stream [hidden]: the embedding, then the stream after each attention and each MLP."""


class Passes(Protocol):
    """The two parts of a pass: from tokens to hidden rows, and from these to logits."""

    def forward(self, tokens: Tensor, layout: BatchLayout, cache: KVCache, probe: Probe | None = None) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Passed:
    """The results of a pass, as far as it went."""

    hidden: Tensor
    """[tokens, hidden]: the result of `Decoder.forward`. Rows without a meaning may follow."""
    logits: Tensor | None = None
    """[rows, vocab] float32: the logits of some of the hidden rows, if the pass ended there."""
    drawn: Tensor | None = None
    """[rows] int64: the tokens drawn from these logits, if the pass went on to draw."""


class FullPass:
    """The whole pass from tokens to logits, for decoders that have its two parts."""

    def run(
        self: Passes,
        tokens: Tensor,
        layout: BatchLayout,
        cache: KVCache,
        probe: Probe | None = None,
        rows: Tensor | None = None,
        sampling: SamplingBatch | None = None,
    ) -> Passed:
        """Run `Decoder.forward`, and go on to the logits of its `rows` [rows] int64.

        Where `sampling` is given, a decoder that can draw by it in the same pass does so; others leave it to the
        caller. The next call may overwrite hidden rows and logits.
        """
        hidden = self.forward(tokens, layout, cache, probe)
        return Passed(hidden, None if rows is None else self.logits(hidden.index_select(0, rows)))


class Decoder(FullPass):
    """A decoder-only transformer: `spec` says how it is built, `weights` are its numbers, `backend` computes."""

    def __init__(self, spec: DecoderSpec, weights: DecoderWeights, backend: Backend) -> None:
        self.spec = spec
        self.weights = weights
        self.backend = backend
        device = weights.device
        ropes = {layer.rope for layer in spec.layers if layer.rope is not None}
        self._frequencies = {rope: rope_frequencies(rope, device) for rope in ropes}
        # The scale is rounded to the model's dtype, as it was when these models (Gemma) were trained.
        self._embedding_scale = torch.tensor(spec.embedding_scale, dtype=weights.dtype).item()
        slopes = alibi_slopes(spec.heads).to(device) if spec.alibi else None
        self._options = [
            AttentionOptions(spec.attention_scale, layer.window, spec.attention_softcap, slopes)
            for layer in spec.layers
        ]

    def forward(self, tokens: Tensor, layout: BatchLayout, cache: KVCache, probe: Probe | None = None) -> Tensor:
        """Run token ids [tokens] int64 through all layers; returns hidden rows [tokens, hidden] after the final norm.

        `layout` says which sequence, position and cache slot each token has. Keys and values are stored in `cache`.
        """
        rotations = {
            rope: self.backend.rotation(frequencies, magnitude, layout.positions)
            for rope, (frequencies, magnitude) in self._frequencies.items()
        }
        x = self._embed(tokens, layout.positions)
        residual: Tensor | None = None
        for layer, (spec, weights, layer_cache) in enumerate(
            zip(self.spec.layers, self.weights.layers, cache.layers, strict=True)
        ):
            x, residual = self._add_norm(x, residual, weights.attention_norm, probe)
            q = self._queries(x, spec, weights, rotations, layer_cache, layout)
            if probe is not None:
                probe.attention(layer, Rows(q), layer_cache, self._options[layer])
            x = self._attention(q, weights, self._options[layer], layer_cache, layout)
            x, residual = self._add_norm(x, residual, weights.mlp_norm, probe)
            x = self._mlp(x, weights)
        return self._add_norm(x, residual, self.weights.final_norm, probe)[0]

    def final_norm(self, residual: Tensor) -> Tensor:
        """Hidden rows [rows, hidden] of a residual stream of the same shape that ends where it is: a logit lens's rows.

        Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
        """
        return self._norm(residual, None, self.weights.final_norm)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [rows, vocab] float32 of hidden rows [rows, hidden], soft-capped where the spec says so."""
        return self.capped(self.backend.linear(hidden, self.weights.output))

    def capped(self, logits: Tensor) -> Tensor:
        """The logits of the output projection's result, both [rows, vocab]."""
        cap = self.spec.logit_softcap
        return logits.float() if cap is None else cap * torch.tanh(logits.float() / cap)

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        weights = self.weights
        x = self.backend.embed(tokens, positions, weights.embedding, self._embedding_scale, weights.position_embedding)
        if self.weights.embedding_norm is not None:
            x = self._norm(x, None, self.weights.embedding_norm)[0]
        return x

    def _add_norm(self, x: Tensor, residual: Tensor | None, norm: Norm, probe: Probe | None) -> tuple[Tensor, Tensor]:
        x, residual = self._norm(x, residual, norm)
        if probe is not None:
            probe.stream(Rows(residual))
        return x, residual

    def _queries(
        self,
        x: Tensor,
        spec: LayerSpec,
        weights: LayerWeights,
        rotations: dict[RopeSpec, Rotation],
        cache: LayerCache,
        layout: BatchLayout,
    ) -> Tensor:
        """Queries [tokens, heads, head_dim]; the keys and values of the same tokens are stored in the cache."""
        qkv = self.backend.linear(x, weights.qkv)
        rotation = None if spec.rope is None else rotations[spec.rope]
        norms = self._head_norms(weights)
        return self.backend.rotate_and_store(qkv, self.spec.heads, norms, rotation, cache, layout.slots)

    def _attention(
        self, q: Tensor, weights: LayerWeights, options: AttentionOptions, cache: LayerCache, layout: BatchLayout
    ) -> Tensor:
        attended = self.backend.attend(q, cache, layout, options)
        out = self.backend.linear(attended.flatten(1), weights.attention_output)
        return self._post_norm(out, weights.post_attention_norm)

    def _mlp(self, x: Tensor, weights: LayerWeights) -> Tensor:
        act = self.backend.gated_activation if self.spec.gated_mlp else self.backend.activation
        out = self.backend.linear(act(self.backend.linear(x, weights.up), self.spec.activation), weights.down)
        return self._post_norm(out, weights.post_mlp_norm)

    def _norm(self, x: Tensor, residual: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
        if norm.bias is None:
            return self.backend.add_rms_norm(x, residual, norm.weight, self.spec.norm_eps)
        return self.backend.add_layer_norm(x, residual, norm.weight, norm.bias, self.spec.norm_eps)

    def _post_norm(self, x: Tensor, norm: Norm | None) -> Tensor:
        return x if norm is None else self._norm(x, None, norm)[0]

    def _head_norms(self, weights: LayerWeights) -> HeadNorms | None:
        if weights.query_norm is None or weights.key_norm is None:
            return None
        return HeadNorms(weights.query_norm, weights.key_norm, self.spec.norm_eps)
