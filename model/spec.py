"""What a decoder is made of. Plain frozen data: it knows nothing of tensors, files or families' config keys."""

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["rms", "layer"]
ActivationKind = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every position divided by `factor` (kaiokendev, 2023)."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Long wavelengths divided by `factor`, short ones kept, a ramp between (Llama 3.1's reference code)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """NTK-by-parts interpolation with an attention temperature (Peng et al., arXiv 2309.00071)."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    """Multiplies queries and keys; None: the paper's 0.1 ln(factor) + 1."""
    truncate: bool = True
    """Whether the ramp's ends are rounded outward to whole dimensions."""


@dataclass(frozen=True, slots=True)
class FactorsScaling:
    """Each pair's frequency divided by its own factor: LongRoPE's (arXiv 2402.13753), and Llama 3's as GGUF has it."""

    factors: tuple[float, ...]
    """One for each rotated pair."""
    attention_factor: float = 1.0
    """Multiplies queries and keys."""


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | FactorsScaling


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding (Su et al., arXiv 2104.09864) of a head's first `dim` dimensions.

    Pairs are (i, i + dim/2), the layout of Hugging Face checkpoints; others are permuted when loaded.
    """

    theta: float
    dim: int
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What may differ from layer to layer."""

    rope: RopeSpec | None = None
    window: int | None = None
    """A query at position i sees keys at positions j with i - window < j <= i; None: all j <= i."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """One decoder-only transformer.

    Every block is pre-norm: x += attention(norm(x)); x += mlp(norm(x)), with the sublayers' outputs
    normalised as well where `post_norms` is set. Whether a projection has a bias is the weights' affair.
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
    """down(act(gate(x)) * up(x)) if set, down(act(up(x))) if not."""
    attention_scale: float
    """Multiplies q.k before the softmax; commonly head_dim ** -0.5."""
    learned_positions: bool = False
    """A trained vector for each position is added to the token embedding (GPT-2)."""
    alibi: bool = False
    """A linear penalty by distance is added to the scores (Press et al., arXiv 2108.12409)."""
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    """The embeddings are normalised before the first block (BLOOM)."""
    qk_norm: bool = False
    """Queries and keys are RMS-normalised per head before rotation (Qwen3, Gemma 3)."""
    post_norms: bool = False
    attention_softcap: float | None = None
    """Scores become cap * tanh(scores / cap)."""
    logit_softcap: float | None = None
    tied_embeddings: bool = True
    """The output projection is the embedding matrix."""
