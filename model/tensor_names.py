"""How a file names a decoder's tensors, and in which layout it stores them.

Plain data: one value describes one family in one format. It knows nothing of tensors' contents.
"""

from dataclasses import dataclass
from typing import Literal

QkvLayout = Literal["half_split", "interleaved", "per_head"]
"""How rows of queries, keys and values are ordered in the file.

half_split: queries, keys, values; rotary pairs are (i, i + dim / 2) of a head. It is what the decoder reads.
interleaved: as before, but rotary pairs of queries and keys are neighbours, (2 i, 2 i + 1).
per_head: the query, key and value of one head after another, in one tensor.
"""

Projection = Literal["qkv", "attention_output", "up", "down"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """Names without ".weight" and ".bias". Those that a family's spec does not call for are never looked up."""

    prefix: str = ""
    """Before all names but `output`. Files of a bare base model leave it out."""
    embedding: str
    position_embedding: str = ""
    embedding_norm: str = ""
    final_norm: str
    output: str
    """The output projection, where it is not the embedding."""

    layer: str
    """Before the names below; "{}" is the layer's index."""
    attention_norm: str
    qkv: tuple[str, ...]
    """One projection, or several that are stacked."""
    query_norm: str = ""
    key_norm: str = ""
    attention_output: str
    post_attention_norm: str = ""
    mlp_norm: str
    up: tuple[str, ...]
    """The gate and the other one, or a single projection that holds all rows."""
    down: str
    post_mlp_norm: str = ""

    biased: frozenset[Projection] = frozenset()
    """Projections that must have a bias; any other may."""
    norm_offset: float = 0.0
    """Added to the weights of RMS norms: Gemma's are stored less one."""
    transposed: bool = False
    """Projections are stored [in, out]."""
    qkv_layout: QkvLayout = "half_split"
    ignored: tuple[str, ...] = ()
    """Patterns of tensors that hold no weights, prefix and all."""

    @property
    def embedding_weight(self) -> str:
        """The embedding's tensor."""
        return f"{self.prefix}{self.embedding}.weight"

    @property
    def output_weight(self) -> str:
        """The output projection's tensor."""
        return f"{self.output}.weight"
