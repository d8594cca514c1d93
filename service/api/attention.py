"""Attention maps of consecutive inspections as one, and attention rollout, which needs all of them."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.inspection import InspectionResult
from service.api.arrays import to_numpy

Weights = NDArray[np.float32]


class Attention(NamedTuple):
    """Attention weights [maps, positions, keys], or of the heaviest keys alone, [maps, positions, top]."""

    weights: Weights
    keys: NDArray[np.int32] | None = None
    """[maps, positions, top]: the keys of these weights; -1 where no further key has a weight. None: all keys."""

    def last(self) -> "Attention":
        """The attention of the last position, without the axis of positions."""
        return Attention(self.weights[:, -1], None if self.keys is None else self.keys[:, -1])


def joined(inspections: Iterable[InspectionResult]) -> Attention:
    """The attention of consecutive inspections, at least one. Keys that some do not reach weigh 0."""
    parts = [(to_numpy(part.attention), part.attention_keys) for part in inspections if part.attention]
    width = max(weights.shape[2] for weights, _ in parts)
    wide = [np.pad(weights, ((0, 0), (0, 0), (0, width - weights.shape[2]))) for weights, _ in parts]
    keys = [to_numpy(keys).astype(np.int32) for _, keys in parts if keys is not None]
    return Attention(np.concatenate(wide, axis=1), np.concatenate(keys, axis=1) if keys else None)


def rollout(means: Weights) -> Weights:
    """How much of each position's token reaches each position's residual stream: [layers, positions, positions].

    `means` has the same shape: the mean over heads of each layer's attention weights, of all positions from the first
    on. Half of a layer's output counts as its input: R_l = (mean_l + 1) / 2 R_(l - 1). Source: Abnar and Zuidema,
    "Quantifying Attention Flow in Transformers", arXiv 2005.00928.
    """
    layers = []
    flow = np.eye(means.shape[1])
    for mean in means:
        flow = (mean @ flow + flow) / 2
        layers.append(flow.astype(np.float32))
    return np.stack(layers)


def heaviest(weights: Weights, top: int) -> Attention:
    """The `top` heaviest keys of each row of weights [maps, positions, keys], as the engine finds them."""
    order = np.argsort(-weights, axis=-1, kind="stable")[..., :top]
    found = np.take_along_axis(weights, order, axis=-1)
    room = ((0, 0), (0, 0), (0, top - order.shape[-1]))
    keys = np.where(found > 0, order, -1).astype(np.int32)
    return Attention(np.pad(found, room), np.pad(keys, room, constant_values=-1))
