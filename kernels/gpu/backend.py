"""The Triton backend: starts each operation's kernel through one launcher."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.backend import (
    ActivationKind,
    AttentionOptions,
    BatchLayout,
    Fp8Weight,
    HeadNorms,
    LayerCache,
    LayerQueries,
    Linear,
    Penalties,
    QuantizedWeight,
    Rotation,
    SamplingBatch,
    TokenCounts,
    Weighed,
)
from kernels.gpu import fp8_matmul
from kernels.gpu.activation import activation, gated_activation
from kernels.gpu.attention import attend
from kernels.gpu.decode import DECODING, Decoding
from kernels.gpu.edits import count_tokens, penalise, restrict
from kernels.gpu.launch import JitLauncher, Launcher, device_target
from kernels.gpu.matmul import PROJECTING, Projecting, linear, pack
from kernels.gpu.norm import add_layer_norm, add_rms_norm
from kernels.gpu.prefill import PrefillTiles, PrefillWarps
from kernels.gpu.rotary import rotate_and_store
from kernels.gpu.sampling import sample
from kernels.gpu.weights import attention_weights
from kernels.reference import embed, log_probabilities, rotation, weigh


class TritonBackend:
    """`kernels.backend.Backend` in Triton."""

    name = "triton"
    keeps_quantized = True
    keeps_fp8 = True
    embeds_packed = False
    cache_dtype: torch.dtype | None = None
    block_size = 64
    capturable = True

    def __init__(
        self,
        launch: Launcher,
        *,
        batch_invariant: bool = False,
        decoding: Decoding = DECODING,
        prefill: PrefillTiles | PrefillWarps | None = None,
        projecting: Projecting = PROJECTING,
    ) -> None:
        """With `batch_invariant`, no bit of a row's result depends on the other rows. This makes projections slower.

        For `prefill` see `kernels.gpu.attention.attend`.
        """
        self._launch = launch
        self._decoding = decoding
        self._prefill = prefill
        self._projecting = projecting
        self._batch_invariant = batch_invariant

    def pack(self, weight: Tensor | QuantizedWeight | Fp8Weight, bias: Tensor | None) -> Linear:
        return Linear(weight, bias) if isinstance(weight, Fp8Weight) else pack(weight, bias)

    def embed(
        self, tokens: Tensor, positions: Tensor, table: Tensor | Linear, scale: float, learned: Tensor | None
    ) -> Tensor:
        return embed(tokens, positions, table, scale, learned)

    def rotation(self, frequencies: Tensor, magnitude: float, positions: Tensor) -> Rotation:
        return rotation(frequencies, magnitude, positions)

    def linear(self, x: Tensor, weight: Linear) -> Tensor:
        if isinstance(weight.weight, Fp8Weight):
            invariant = self._batch_invariant
            folded = self._projecting.folded
            return fp8_matmul.linear(
                self._launch, x, weight.weight, weight.bias, batch_invariant=invariant, folded=folded
            )
        return linear(self._launch, x, weight, batch_invariant=self._batch_invariant, projecting=self._projecting)

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return add_rms_norm(self._launch, x, residual, weight, eps)

    def add_layer_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return add_layer_norm(self._launch, x, residual, weight, bias, eps)

    def rotate_and_store(
        self,
        qkv: Tensor,
        heads: int,
        norms: HeadNorms | None,
        rotation: Rotation | None,
        cache: LayerCache,
        slots: Tensor,
    ) -> Tensor:
        return rotate_and_store(self._launch, qkv, heads, norms, rotation, cache, slots)

    def attend(self, q: Tensor, cache: LayerCache, layout: BatchLayout, options: AttentionOptions) -> Tensor:
        return attend(self._launch, q, cache, layout, options, self._decoding, self._prefill)

    def attention_weights(self, layers: Sequence[LayerQueries], positions: Tensor, blocks: Tensor) -> Tensor:
        weights = [
            attention_weights(self._launch, q, positions, cache, blocks, heads, options)
            for q, cache, heads, options in layers
        ]
        return torch.cat(weights) if len(weights) > 1 else weights[0]

    def activation(self, x: Tensor, kind: ActivationKind) -> Tensor:
        return activation(self._launch, x, kind)

    def gated_activation(self, gate_up: Tensor, kind: ActivationKind) -> Tensor:
        return gated_activation(self._launch, gate_up, kind)

    def count_tokens(self, counts: TokenCounts, requests: Tensor, tokens: Tensor) -> None:
        count_tokens(self._launch, counts, requests, tokens)

    def penalise(self, logits: Tensor, counts: TokenCounts, penalties: Penalties) -> None:
        penalise(self._launch, logits, counts, penalties)

    def restrict(self, logits: Tensor, rows: Tensor, masks: Tensor) -> None:
        restrict(self._launch, logits, rows, masks)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        return sample(self._launch, logits, batch)

    def weigh(self, logits: Tensor, batch: SamplingBatch, before: Weighed | None) -> Weighed:
        return weigh(logits, batch, before)

    def log_probabilities(self, logits: Tensor, tokens: Tensor, most: int) -> Tensor:
        return log_probabilities(logits, tokens, most)


def load_triton(device: torch.device, *, batch_invariant: bool = False) -> TritonBackend:
    """The Triton backend for `device`. Raises ValueError for a CPU unless TRITON_INTERPRET=1 is set."""
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("the triton backend needs a GPU, or TRITON_INTERPRET=1 to be interpreted on a CPU")
    return TritonBackend(JitLauncher(device_target(device)), batch_invariant=batch_invariant)
