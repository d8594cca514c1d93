"""Every operation in plain torch: the oracle of every kernel's test, and a backend that runs on any device.

The code is written to be read: it is vectorised over the batch, but makes no attempt to save memory traffic.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
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
from kernels.reference_edits import count_tokens, penalise, restrict
from kernels.reference_sampling import sample, sampled_weights

E4M3_MAX = 448.0
"""The largest number of e4m3."""
LEAST_MAXIMUM = 1e-12
"""The largest magnitude that a run of zeros counts as having, so that its scale is not 0."""


class ReferenceBackend:
    """`kernels.backend.Backend` in plain torch."""

    name = "reference"
    keeps_quantized = False
    keeps_fp8 = False
    embeds_packed = False
    cache_dtype: torch.dtype | None = None
    block_size = 16
    capturable = False

    def pack(self, weight: Tensor | QuantizedWeight | Fp8Weight, bias: Tensor | None) -> Linear:
        return Linear(weight, bias)

    def embed(
        self, tokens: Tensor, positions: Tensor, table: Tensor | Linear, scale: float, learned: Tensor | None
    ) -> Tensor:
        return embed(tokens, positions, table, scale, learned)

    def rotation(self, frequencies: Tensor, magnitude: float, positions: Tensor) -> Rotation:
        return rotation(frequencies, magnitude, positions)

    def linear(self, x: Tensor, weight: Linear) -> Tensor:
        dense = weight.weight
        if isinstance(dense, QuantizedWeight | Fp8Weight):
            dense = (dequantize(dense) if isinstance(dense, QuantizedWeight) else dequantize_fp8(dense)).to(x.dtype)
        assert isinstance(dense, Tensor), "another backend packed this weight"
        return F.linear(x, dense, weight.bias)

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total = x if residual is None else x + residual
        return rms_norm(total, weight, eps), total

    def add_layer_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total = x if residual is None else x + residual
        return F.layer_norm(total, weight.shape, weight, bias, eps), total

    def rotate_and_store(
        self,
        qkv: Tensor,
        heads: int,
        norms: HeadNorms | None,
        rotation: Rotation | None,
        cache: LayerCache,
        slots: Tensor,
    ) -> Tensor:
        kv_heads, head_dim = cache.keys.shape[2:]
        split: tuple[Tensor, ...] = qkv.unflatten(1, (-1, head_dim)).split([heads, kv_heads, kv_heads], dim=1)
        q, k, v = split
        if norms is not None:
            q = rms_norm(q, norms.query, norms.eps)
            k = rms_norm(k, norms.key, norms.eps)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        stored = slots >= 0
        cache.keys.flatten(0, 1)[slots[stored]] = encode(k, cache.key_scales, cache.keys.dtype)[stored]
        cache.values.flatten(0, 1)[slots[stored]] = encode(v, cache.value_scales, cache.values.dtype)[stored]
        return q

    def attend(self, q: Tensor, cache: LayerCache, layout: BatchLayout, options: AttentionOptions) -> Tensor:
        return attend(q, cache, layout, options)

    def attention_weights(self, layers: Sequence[LayerQueries], positions: Tensor, blocks: Tensor) -> Tensor:
        return torch.cat([attention_weights(layer, positions, blocks) for layer in layers])

    def activation(self, x: Tensor, kind: ActivationKind) -> Tensor:
        return activation(x, kind)

    def gated_activation(self, gate_up: Tensor, kind: ActivationKind) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return activation(gate, kind) * up

    def count_tokens(self, counts: TokenCounts, requests: Tensor, tokens: Tensor) -> None:
        count_tokens(counts, requests, tokens)

    def penalise(self, logits: Tensor, counts: TokenCounts, penalties: Penalties) -> None:
        penalise(logits, counts, penalties)

    def restrict(self, logits: Tensor, rows: Tensor, masks: Tensor) -> None:
        restrict(logits, rows, masks)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        return sample(logits, batch)

    def weigh(self, logits: Tensor, batch: SamplingBatch, before: Weighed | None) -> Weighed:
        return weigh(logits, batch, before)

    def log_probabilities(self, logits: Tensor, tokens: Tensor, most: int) -> Tensor:
        return log_probabilities(logits, tokens, most)


def embed(tokens: Tensor, positions: Tensor, table: Tensor | Linear, scale: float, learned: Tensor | None) -> Tensor:
    """See `Backend.embed`. The table must be a tensor, not a packed one."""
    assert isinstance(table, Tensor), "a packed table is for the backend that packed it"
    x = table[tokens]
    if scale != 1.0:
        x = x * scale
    return x if learned is None else x + learned[positions]


def rotation(frequencies: Tensor, magnitude: float, positions: Tensor) -> Rotation:
    """See `Backend.rotation`."""
    angles = positions.float()[:, None] * frequencies
    return Rotation(angles.cos() * magnitude, angles.sin() * magnitude)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension: x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv 1910.07467).

    `x` may have any shape that ends in `weight`'s; sums are float32, and the result has x's dtype.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotary embedding of `x` [tokens, heads, head_dim] (Su et al., arXiv 2104.09864).

    Each pair of dimensions (i, i + rope_dim / 2) is rotated by its token's angle.
    """
    half = rotation.cos.shape[1]
    a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = rotation.cos[:, None], rotation.sin[:, None]
    return torch.cat([(a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype), rest], dim=-1)


def encode(x: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Keys or values [tokens, kv_heads, head_dim] in the cache's `dtype`, divided by `scales` [kv_heads] if given."""
    if scales is None:
        return x.to(dtype)
    limit = torch.finfo(dtype).max
    return (x.float() / scales[:, None]).clamp(-limit, limit).to(dtype)


def decode(stored: Tensor, scales: Tensor | None) -> Tensor:
    """The inverse of `encode`: cached keys or values [..., kv_heads, head_dim] in float32."""
    return stored.float() if scales is None else stored.float() * scales[:, None]


def dequantize(weight: QuantizedWeight) -> Tensor:
    """`scale * (code - zero) + offset`: the weight [out, in] in float32."""
    codes = weight.codes
    if weight.bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1)
    grouped: Tensor = (codes.float() - weight.zero).unflatten(1, (-1, weight.group_size)) * weight.scales.float()[
        ..., None
    ]
    if weight.offsets is not None:
        grouped = grouped + weight.offsets.float()[..., None]
    return grouped.flatten(1)


def dequantize_fp8(weight: Fp8Weight) -> Tensor:
    """`scale * number`: the weight [out, in] in float32."""
    rows, columns = weight.shape
    heights = weight.scales.repeat_interleave(weight.height, 0)[:rows]
    return weight.numbers.float() * heights.repeat_interleave(weight.width, 1)[:, :columns]


def quantize_e4m3(x: Tensor, width: int) -> Tensor:
    """Activations [tokens, in], rounded to e4m3 numbers with a scale for each run of `width` inputs, in float32.

    The scale takes the run's largest magnitude to the largest number of e4m3.
    """
    runs = x.float().split(width, dim=1)
    scales = [run.abs().amax(1, keepdim=True).clamp(min=LEAST_MAXIMUM) / E4M3_MAX for run in runs]
    rounded = [(run / scale).to(torch.float8_e4m3fn).float() * scale for run, scale in zip(runs, scales, strict=True)]
    return torch.cat(rounded, dim=1)


def activation(x: Tensor, kind: ActivationKind) -> Tensor:
    """SiLU, GELU, or GELU's tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415) of each element."""
    match kind:
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")


def attend(q: Tensor, cache: LayerCache, layout: BatchLayout, options: AttentionOptions) -> Tensor:
    """softmax(scale * q.k + mask) v for every sequence of a ragged batch, over its own cache blocks.

    See `Backend.attend`. Sequences whose numbers of new tokens are within a factor of two are padded to a common
    shape. A wider range would waste work: a decoding sequence padded to a long prompt is nearly all padding.
    """
    counts = layout.query_starts.diff().tolist()
    with_tokens = [i for i, count in enumerate(counts) if count]
    groups = [list(group) for _, group in groupby(with_tokens, key=lambda i: counts[i].bit_length())]
    parts = [_attend_padded(q, cache, layout, options, group[0], group[-1] + 1) for group in groups]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def attention_weights(layer: LayerQueries, positions: Tensor, blocks: Tensor) -> Tensor:
    """See `Backend.attention_weights`."""
    q, cache, heads, options = layer
    kv_heads = cache.keys.shape[2]
    chosen = torch.tensor(heads, device=q.device)
    keys = decode(cache.keys[blocks.long()], cache.key_scales).flatten(0, 1)
    # Each query head reads the keys of its group's KV head: [heads, dim, keys].
    keys = keys[:, chosen * kv_heads // q.shape[1]].permute(1, 2, 0)
    scores = q[:, chosen].transpose(0, 1).float() * options.scale @ keys
    distance = positions[:, None] - torch.arange(keys.shape[-1], device=q.device)
    slopes = None if options.alibi_slopes is None else options.alibi_slopes[chosen, None, None]
    sinks = None if options.sinks is None else options.sinks[chosen, None, None].expand(*scores.shape[:2], 1)
    return _normalise(scores, distance, options, slopes, sinks)


def weigh(logits: Tensor, batch: SamplingBatch, before: Weighed | None) -> Weighed:
    """See `Backend.weigh`."""
    weights = sampled_weights(logits, batch)
    kept, total = weights > 0, weights.sum(-1, dtype=torch.float64)
    entropy = torch.special.entr(weights / total[:, None]).sum(-1)
    share = torch.ones_like(total)
    if before is not None:
        share = torch.where(kept, before.weights, 0.0).sum(-1, dtype=torch.float64) / before.figures[:, 0]
    return Weighed(weights, torch.stack([total, kept.sum(-1).double(), share, entropy], 1))


def log_probabilities(logits: Tensor, tokens: Tensor, most: int) -> Tensor:
    """See `Backend.log_probabilities`."""
    scores = logits.double().log_softmax(-1)
    # Sums of zeros have no sign, so that a logit of -0.0 has the bits of its equal.
    equal = logits.masked_fill(scores.isnan(), 0.0) + 0.0
    rank = 1 + (equal > equal.gather(1, tokens[:, None])).sum(1, keepdim=True)
    ids = _in_order(equal).topk(most).indices
    return torch.cat([scores.gather(1, tokens[:, None]), rank.double(), scores.gather(1, ids), ids.double()], dim=1)


def _in_order(logits: Tensor) -> Tensor:
    """Numbers int64 in the order of `logits` [rows, vocab] float32, of which no two of a row are equal.

    Among equals the lower index has the larger number; torch's own order of equals is not defined.
    """
    bits = logits.view(torch.int32).long()
    # As integers, the bits of negative floats are in the opposite order, until all but the sign are inverted.
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered << 32) - torch.arange(logits.shape[1], device=logits.device)


def _attend_padded(
    q: Tensor, cache: LayerCache, layout: BatchLayout, options: AttentionOptions, first: int, last: int
) -> Tensor:
    """`attend` for the sequences first to last - 1 alone."""
    starts, lens = layout.query_starts[first:last], layout.context_lens[first:last]
    counts = layout.query_starts[first + 1 : last + 1] - starts
    offsets = torch.arange(int(counts.max()), device=q.device)
    real = offsets < counts[:, None]
    rows = (starts[:, None] + offsets).where(real, starts[:, None])
    query_at = (lens - counts)[:, None] + offsets

    kv_heads = cache.keys.shape[2]
    # Query heads that share a KV head become rows of one product: [seqs, kv_heads, group * queries, dim].
    padded = q[rows].unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)
    shape = padded.shape[:4]
    padded = padded.flatten(2, 3).float() * options.scale
    # At least one block, for a group of padding sequences alone.
    blocks = layout.block_table[first:last, : max(1, -(-int(lens.max()) // cache.keys.shape[1]))].long()
    keys = decode(cache.keys[blocks], cache.key_scales).flatten(1, 2).permute(0, 2, 3, 1)
    values = decode(cache.values[blocks], cache.value_scales).flatten(1, 2).transpose(1, 2)

    key_at = torch.arange(keys.shape[-1], device=q.device)
    scores = (padded @ keys).view(*shape, -1)
    distance = (query_at[:, :, None] - key_at)[:, None, None]
    slopes = None if options.alibi_slopes is None else options.alibi_slopes.view(1, kv_heads, -1, 1, 1)
    sinks = None if options.sinks is None else options.sinks.view(1, kv_heads, -1, 1, 1).expand(*shape, 1)
    weights = _normalise(scores, distance, options, slopes, sinks)
    # Slots beyond the end of a sequence hold old or uninitialised data, and a weight of 0 times a NaN is a NaN.
    values = values.masked_fill((key_at >= lens[:, None])[:, None, :, None], 0.0)
    out = (weights.flatten(2, 3) @ values).masked_fill_((lens == 0)[:, None, None, None], 0.0)
    return out.view(*shape, -1).permute(0, 3, 1, 2, 4).flatten(2, 3)[real].to(q.dtype)


def _normalise(
    scores: Tensor, distance: Tensor, options: AttentionOptions, slopes: Tensor | None, sinks: Tensor | None
) -> Tensor:
    """Attention weights of scores [..., queries, keys], for keys that lie `distance` positions before their queries.

    `slopes` are ALiBi's, `sinks` [..., queries, 1] further logits without a value.
    """
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if slopes is not None:
        scores = scores - slopes * distance
    visible = distance >= 0
    if options.window is not None:
        visible &= distance < options.window
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    return torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]
