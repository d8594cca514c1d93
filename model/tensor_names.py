"""The names and layouts under which a file stores a decoder's tensors.

One `TensorNames` describes one family in one file format. The module is plain data.
"""

from dataclasses import dataclass
from typing import Literal

QkvLayout = Literal["half_split", "interleaved", "per_head"]
"""Order of the rows of queries, keys and values in the file.

half_split: all queries, all keys, all values; rotary pairs of a head are (i, i + dim / 2). The decoder reads this one.
interleaved: as half_split, but rotary pairs of queries and keys are neighbours, (2 i, 2 i + 1).
per_head: one tensor with the query, key and value of head 0, those of head 1, and so on.
"""

Projection = Literal["qkv", "attention_output", "up", "down"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """Tensor names without ".weight" and ".bias". A name that the family's spec does not need is never looked up."""

    prefix: str = ""
    """Prefix of all names but `output`; files of a bare base model have none."""
    embedding: str
    position_embedding: str = ""
    embedding_norm: str = ""
    final_norm: str
    output: str
    """Name of the output projection, where it is not the embedding."""

    layer: str
    """Prefix of the names below, after `prefix`; "{}" stands for the layer's index."""
    attention_norm: str
    qkv: tuple[str, ...]
    """Names of the query, key and value projections, or of the one tensor that holds all three."""
    query_norm: str = ""
    key_norm: str = ""
    attention_output: str
    post_attention_norm: str = ""
    mlp_norm: str
    up: tuple[str, ...]
    """Names of the gate and up projections, or of the one tensor that holds all rows."""
    down: str
    post_mlp_norm: str = ""

    biased: frozenset[Projection] = frozenset()
    """Projections that must have a bias; the others may have one."""
    norm_offset: float = 0.0
    """Number added to the weights of RMS norms; Gemma stores them less 1."""
    transposed: bool = False
    """Whether projections are stored [in, out] instead of [out, in]."""
    qkv_layout: QkvLayout = "half_split"
    ignored: tuple[str, ...] = ()
    """Regular expressions of whole names, prefix included, of tensors that are not weights."""

    @property
    def embedding_weight(self) -> str:
        """Full name of the embedding's tensor."""
        return f"{self.prefix}{self.embedding}.weight"

    @property
    def output_weight(self) -> str:
        """Full name of the output projection's tensor."""
        return f"{self.output}.weight"
