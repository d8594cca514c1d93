"""The description of a decoder, as frozen data. It knows nothing of tensors, files or families' config keys."""

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["rms", "layer"]
ActivationKind = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Position interpolation: every position is divided by `factor` (kaiokendev, 2023; arXiv 2306.15595)."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's scaling (its reference code): low frequencies are divided by `factor`, high ones are kept.

    Between them lies a linear ramp.
    """

    factor: float
    low_freq_factor: float
    """Turns within `original_context` up to which a frequency is divided by `factor`."""
    high_freq_factor: float
    """Turns within `original_context` from which on a frequency is kept."""
    original_context: int
    """Tokens."""


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """NTK-by-parts interpolation with an attention temperature (Peng et al., arXiv 2309.00071)."""

    factor: float
    original_context: int
    """Tokens."""
    beta_fast: float = 32.0
    """Turns within `original_context` from which on a frequency is kept."""
    beta_slow: float = 1.0
    """Turns within `original_context` up to which a frequency is divided by `factor`."""
    attention_factor: float | None = None
    """Factor on cosines and sines, hence on queries and keys; None: the paper's 0.1 ln(factor) + 1."""
    truncate: bool = True
    """Whether the ramp's ends are rounded outward to whole pairs."""


@dataclass(frozen=True, slots=True)
class FactorsScaling:
    """Each frequency is divided by a factor of its own: LongRoPE (Ding et al., arXiv 2402.13753).

    GGUF files store Llama 3's scaling in the same form.
    """

    factors: tuple[float, ...]
    """[dim / 2], one for each rotated pair."""
    attention_factor: float = 1.0
    """Factor on cosines and sines, hence on queries and keys."""


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | FactorsScaling


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding (Su et al., arXiv 2104.09864) of the first `dim` dimensions of each head.

    Pairs are (i, i + dim / 2), as in Hugging Face checkpoints; weights in another layout are permuted when loaded.
    """

    theta: float
    """Base of the frequencies."""
    dim: int
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The properties that may differ from layer to layer."""

    rope: RopeSpec | None = None
    """None: queries and keys are not rotated."""
    window: int | None = None
    """Window of attention in tokens: the query at position i sees keys at i - window + 1 to i; None: all up to i."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """One decoder-only transformer.

    Every layer is pre-norm: x += attention(norm(x)); x += mlp(norm(x)). A projection has a bias if its weights have.
    """

    family: str
    vocab_size: int
    """Rows of the embedding and width of the logits."""
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    heads: int
    kv_heads: int
    head_dim: int
    mlp_size: int
    max_context: int
    norm: NormKind = "rms"
    norm_eps: float = 1e-5
    activation: ActivationKind = "silu"
    gated_mlp: bool = True
    """Whether the MLP is down(act(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202); if not, it is down(act(up(x)))."""
    attention_scale: float
    """Factor on q.k before the softmax; commonly head_dim ** -0.5."""
    learned_positions: bool = False
    """Whether a trained vector for each position is added to the token embedding (GPT-2)."""
    alibi: bool = False
    """Whether a linear penalty by distance is added to attention scores (Press et al., arXiv 2108.12409)."""
    embedding_scale: float = 1.0
    """Factor on token embeddings."""
    embedding_norm: bool = False
    """Whether embeddings are normalised before the first layer (BLOOM)."""
    qk_norm: bool = False
    """Whether queries and keys are RMS-normalised per head before rotation (Qwen3, Gemma 3)."""
    post_norms: bool = False
    """Whether outputs of attention and MLP are normalised before they are added to x (Gemma 3)."""
    attention_softcap: float | None = None
    """Cap of attention scores, which become cap * tanh(score / cap) (Gemma 2, arXiv 2408.00118)."""
    logit_softcap: float | None = None
    """Cap of logits, in the same way."""
    tied_embeddings: bool = True
    """Whether the embedding matrix is also the output projection."""
