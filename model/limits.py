"""A loaded model as the engine and the HTTP side know it: its limits, its sizes, and the choices that loading made.

This module imports the standard library alone, and msgspec encodes its dataclasses as they are.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """The sizes of a decoder that are shown to people; zeros where a runner has no weights.

    Parameters are counted where they are used: norms with what they feed, all layers together.
    """

    hidden_size: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    mlp_size: int = 0
    embedding: int = 0
    """Parameters of the embedding: its table, learned positions, its norm."""
    attention: int = 0
    """Parameters of the attention of all layers."""
    feed_forward: int = 0
    """Parameters of the MLPs of all layers."""
    head: int = 0
    """Parameters of the last norm and of the output projection, unless that is the embedding's table."""
    weight_bytes: int = 0
    """Memory of the weights in the form in which the backend holds them."""

    @property
    def parameters(self) -> int:
        """All parameters; a table that is used twice counts once."""
        return self.embedding + self.attention + self.feed_forward + self.head


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The sizes of a loaded model that the engine and the HTTP side need."""

    vocab_size: int
    """Width of the logits; token ids lie in [0, vocab_size)."""
    max_context: int
    """Limit of a request's tokens, prompt and output together: the model's own, or the operator's lower setting."""
    num_blocks: int
    """Blocks in the KV cache."""
    block_size: int
    """Tokens in a block of the KV cache."""
    layers: int
    heads: int
    """Query heads of each layer."""
    encoding_width: int
    """Numbers of a position's encoding: its rotary angles, and its learned row."""
    size: ModelSize = ModelSize()

    @property
    def capacity(self) -> int:
        """Limit of one request's tokens, prompt and output together, that both the context and the KV cache allow."""
        return min(self.max_context, self.num_blocks * self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerInfo:
    """The choices that loading made where `RunnerConfig` says "auto"; they are shown to the operator."""

    device: str
    """Name of the device, such as "NVIDIA H200" or "cpu"."""
    dtype: str
    cache_dtype: str
    backend: str
