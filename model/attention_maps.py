"""Attention maps as an inspection request asks for them: reduced over heads, and to the heaviest keys of each row."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SLICE_BYTES = 64 * 2**20
"""Bytes of the attention weights that are reduced at once."""


class Maps(NamedTuple):
    """Attention weights of some maps: one for each head, or one for each layer."""

    weights: Tensor
    """[maps, rows, keys] float32, or [maps, rows, top] of the heaviest keys, the heaviest first."""
    keys: Tensor | None
    """[maps, rows, top] float32: the keys of these weights, -1 where no further key has a weight; None: all keys."""


def reduced_maps(
    weigh: Callable[[slice], Tensor],
    rows: int,
    row_bytes: int,
    counts: Sequence[int],
    reduction: Literal["mean", "max"] | None,
    top: int | None,
) -> Maps:
    """The maps of weights [heads, rows, keys], of which `weigh` computes a slice of rows, `row_bytes` for each row.

    The heads are those of several layers, `counts` of each; a reduction makes a map of each layer.

    Weights are computed a slice at a time, so that those of a long context never fill the memory.
    """
    step = max(1, SLICE_BYTES // row_bytes)
    parts = []
    for first in range(0, rows, step):
        weights = over_heads(weigh(slice(first, first + step)), counts, reduction)
        parts.append(Maps(weights, None) if top is None else heaviest(weights, top))
    if len(parts) == 1:
        return parts[0]
    keys = None if top is None else torch.cat([part.keys for part in parts if part.keys is not None], dim=1)
    return Maps(torch.cat([part.weights for part in parts], dim=1), keys)


def over_heads(weights: Tensor, counts: Sequence[int], reduction: Literal["mean", "max"] | None) -> Tensor:
    """The mean or the maximum over the heads of each layer, [layers, rows, keys]; `weights` themselves if None.

    `weights` are [heads, rows, keys], with `counts` heads of each layer.
    """
    if reduction is None:
        return weights
    if min(counts) == max(counts):
        return _reduced(weights.unflatten(0, (len(counts), -1)), reduction)
    return torch.cat([_reduced(part[None], reduction) for part in weights.split([*counts])])


def _reduced(weights: Tensor, reduction: Literal["mean", "max"]) -> Tensor:
    """[layers, rows, keys] of weights [layers, heads, rows, keys]."""
    return weights.mean(1) if reduction == "mean" else weights.amax(1)


def heaviest(weights: Tensor, top: int) -> Maps:
    """The `top` heaviest keys of each row of weights [maps, rows, keys]."""
    found, keys = weights.topk(min(top, weights.shape[-1]), dim=-1)
    missing = top - found.shape[-1]
    return Maps(F.pad(found, (0, missing)), F.pad(keys.float().where(found > 0, -1.0), (0, missing), value=-1.0))
