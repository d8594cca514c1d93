"""The arguments of each operation by name: the backend writes them as words, and compiled code reads them by `unpack`.

Every argument is an int64: a count, a tensor's address (0: there is none), or the bits of a float32. Tensors are
float32 unless their shape says otherwise.
"""

from typing import NamedTuple


class StepWords(NamedTuple):
    """The words of a step, which say what a program works on; `step` in an operation's arguments is their address."""

    rows: int
    """Number of tokens, or of whatever else the first dimension of an operation's input counts."""
    sequences: int
    query_starts: int
    """[sequences + 1] int32: where each sequence's tokens begin in the batch, and where the last ones end."""
    context_lens: int
    """[sequences] int32."""
    block_table: int
    """[sequences, table_width] int32."""
    table_width: int
    slots: int
    """[rows] int64; below 0 for a token whose key and value are not stored."""
    positions: int
    """[rows] int64."""
    token_ids: int
    """[rows] int64."""
    kept: int
    """Number of rows that `keep` copies."""
    places: int
    """[kept] int64: the indices of these rows."""
    temperature: int
    """[rows]; the settings of draws, here and below, have the dtypes of `SamplingBatch`."""
    top_k: int
    """[rows]."""
    top_p: int
    """[rows]."""
    min_p: int
    """[rows]."""
    seed: int
    """[rows]."""
    counter: int
    """[rows]."""
    drawn: int
    """[rows] int64: the tokens that are drawn."""


class EmbedArguments(NamedTuple):
    """Token embeddings."""

    step: int
    panels: int
    groups: int
    """Number of groups of weights in a panel's row."""
    scale: int
    """Bits."""
    learned: int
    """[positions, size], or none: position embeddings."""
    out: int
    """[rows, size]."""
    size: int


class NormArguments(NamedTuple):
    """The sum of x and the residual stream, and its norm."""

    step: int
    x: int
    """[rows, size]."""
    residual: int
    """[rows, size], or none."""
    weight: int
    """[size]."""
    bias: int
    """[size], or none."""
    eps: int
    """Bits."""
    normed: int
    """[rows, size], or none if only rounded numbers are wanted."""
    stream: int
    """[rows, size]: the sum; the same as x where there is no residual stream."""
    size: int
    rounded: int = 0
    """As in `RoundArguments`; 0 where nothing is rounded."""
    sums: int = 0
    """As in `RoundArguments`; 0 where nothing is rounded."""


class RoundArguments(NamedTuple):
    """Activations to be rounded."""

    step: int
    x: int
    """[rows, columns]."""
    columns: int
    """A whole number of groups."""
    rounded: int
    """Codes, int16, or bfloat16 numbers, as `round_row` writes them."""
    sums: int
    """Sums of each group's codes, as `round_row` writes them."""


class MultiplyArguments(NamedTuple):
    """A projection."""

    step: int
    x: int
    """[rows, inputs]; 0 if the weight's form needs rounded ones."""
    rounded: int
    """x as in `RoundArguments`, if the weight's form needs that."""
    sums: int
    """As in `RoundArguments`."""
    panels: int
    bias: int
    """[outputs], or none."""
    out: int
    """[rows, outputs]; of `gated_matmul.py`, the products [rows, outputs / 2] as in `RoundArguments`."""
    groups: int
    """Number of groups of inputs."""
    outputs: int
    exponent: int
    """`Panels.exponent`."""
    threads: int
    """Number of threads that share the work."""
    few: int = 0
    """1 if nothing is to be done in steps in which the matrix unit multiplies."""
    ranks: int = 0
    """[chunks, rows] int64, or none: the highest rank of each row's outputs in a chunk of work, in place of outputs."""
    residual: int = 0
    """[rows, outputs], or none: what is added to the outputs; it may be `out` itself."""


class AnglesArguments(NamedTuple):
    """Rotary angles."""

    step: int
    frequencies: int
    """[half], in radians for each position."""
    magnitude: int
    """Bits."""
    cos: int
    """[rows, half]."""
    sin: int
    """[rows, half]."""
    half: int


class RotateArguments(NamedTuple):
    """Queries, keys and values of new tokens, and the cache that keys and values go to."""

    step: int
    qkv: int
    """[rows, (heads + 2 kv_heads) * dim]."""
    heads: int
    kv_heads: int
    dim: int
    query_norm: int
    """[dim], or none."""
    key_norm: int
    """[dim], or none."""
    eps: int
    """Bits."""
    cos: int
    """[rows, half], or none."""
    sin: int
    """[rows, half], or none."""
    half: int
    """0 where nothing is rotated."""
    queries: int
    """[rows, heads, dim]."""
    keys: int
    """[slots, kv_heads, dim] in the cache's form."""
    values: int
    """[slots, kv_heads, dim] in the cache's form."""
    slot_bytes: int
    """Bytes from one slot of the cache to the next."""
    key_scales: int
    """[kv_heads], or none."""
    value_scales: int
    """[kv_heads], or none."""


class AttendArguments(NamedTuple):
    """Queries, and the paged cache over which they attend."""

    step: int
    queries: int
    """[rows, heads, dim]."""
    heads: int
    kv_heads: int
    keys: int
    """[blocks, block, kv_heads, dim] in the cache's form."""
    values: int
    """[blocks, block, kv_heads, dim] in the cache's form, or in pairs of tokens; see `attention_memory.serves`."""
    key_scales: int
    """[kv_heads], or none."""
    value_scales: int
    """[kv_heads], or none."""
    scale: int
    """Bits: the factor of scores."""
    window: int
    """Number of newest keys that a query sees; 0: all."""
    softcap: int
    """Bits; 0: none."""
    slopes: int
    """[heads], or none: ALiBi's."""
    sinks: int
    """[heads], or none: logits without a value."""
    out: int
    """[rows, heads, dim]."""
    threads: int
    """Number of threads that share the work."""


class AttentionWeightsArguments(NamedTuple):
    """Queries of one sequence, and the cache with its keys. Fields not described here are as in `AttendArguments`."""

    step: int
    queries: int
    heads: int
    kv_heads: int
    keys: int
    values: int
    """The same address as that of the keys: values are located beside them, and not read."""
    key_scales: int
    scale: int
    window: int
    softcap: int
    slopes: int
    sinks: int
    out: int
    """[chosen_count, rows, width]."""
    chosen: int
    """[chosen_count] int32: the heads whose weights are wanted."""
    chosen_count: int
    width: int
    """Number of keys in a row of weights."""


class ActivationArguments(NamedTuple):
    """Numbers to which an activation function is applied."""

    step: int
    x: int
    """[rows, size]."""
    out: int
    """[rows, size]."""
    size: int


class GatedArguments(NamedTuple):
    """A gate to which an activation function is applied, and the numbers that it is multiplied with."""

    step: int
    gate_up: int
    """[rows, 2 * size], the gate first."""
    out: int
    """[rows, size]."""
    size: int
    rounded: int = 0
    """As in `RoundArguments`; 0 where nothing is rounded."""
    sums: int = 0
    """As in `RoundArguments`; 0 where nothing is rounded."""


class KeepArguments(NamedTuple):
    """Rows of which some are copied."""

    step: int
    x: int
    """[rows, size]."""
    out: int
    """[kept, size]."""
    size: int


class CountArguments(NamedTuple):
    """Counts of drawn tokens, in a table of rows that are `stride` entries apart."""

    step: int
    requests: int
    """[rows] int64."""
    drawn: int
    """[rows] int64."""
    tokens: int
    """[requests, stride] int32."""
    times: int
    """[requests, stride] int32."""
    lengths: int
    """[requests] int32."""
    stride: int


class PenaliseArguments(NamedTuple):
    """Penalties for counted tokens, from a table as in `CountArguments`."""

    step: int
    logits: int
    vocab: int
    tokens: int
    times: int
    lengths: int
    stride: int
    rows: int
    """[rows] int64: the rows of the logits."""
    requests: int
    """[rows] int64."""
    repetition: int
    """[rows]."""
    presence: int
    """[rows]."""
    frequency: int
    """[rows]."""


class RestrictArguments(NamedTuple):
    """Masks over logits."""

    step: int
    logits: int
    vocab: int
    rows: int
    """[rows] int64: the rows of the logits."""
    masks: int
    """[rows, stride] uint8."""
    stride: int


class SampleArguments(NamedTuple):
    """Logits, from which tokens are drawn by the step's settings."""

    step: int
    logits: int
    """[rows, vocab]."""
    vocab: int


class PickArguments(NamedTuple):
    """Ranks of logits, of which the token with the highest one is drawn."""

    step: int
    ranks: int
    """[chunks, rows] int64."""
    chunks: int


class WeighArguments(NamedTuple):
    """Logits, which are weighed by the step's settings."""

    step: int
    logits: int
    """[rows, vocab]."""
    vocab: int
    weights: int
    """[rows, vocab]."""
    figures: int
    """[rows, WEIGHED_FIGURES] float64."""
    weights_before: int
    """[rows, vocab], or none: the weights of the stage before."""
    figures_before: int
    """[rows, WEIGHED_FIGURES] float64, or none."""


class LogprobsArguments(NamedTuple):
    """Logits, and the tokens whose log-probabilities are wanted."""

    step: int
    logits: int
    """[rows, vocab]."""
    vocab: int
    tokens: int
    """[rows] int64."""
    most: int
    """Number of likeliest tokens beside each."""
    out: int
    """[rows, 2 + 2 * most] float64."""
