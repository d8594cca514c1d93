"""The settings of a batch's draws as the sampler wants them, worked out once for as long as they stay the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.backend import SamplingBatch
from model.contract import Draw, Draws
from model.sampling.orders import BACKEND, TRANSFORMED
from model.sampling.transforms import TRANSFORMS, Transform
from model.sampling_params import SamplingParams
from model.transfer import host_tensor, stage_named


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """All that follows from the parameters of a batch's draws alone.

    Its tensors are on the device, and nobody edits them. Batches of decoding steps have the same parameters until a
    request begins or ends.
    """

    params: Sequence[SamplingParams]
    transforms: Sequence[Transform]
    """The transforms that any of the draws may ask for, in their order."""
    asking: Sequence[int]
    """Indices of the draws that ask for log-probabilities."""
    reads_output: bool
    """Whether any of the draws depends on its request's earlier tokens."""
    rows: Tensor
    """[asking] int64: `asking`."""
    columns: dict[str, Tensor]
    """The columns of a `SamplingBatch` but `counter`, by their names, each [draws]."""

    def draws_alone(self, draws: Sequence[Draw]) -> bool:
        """Whether nothing is done with the logits of the draws, whose settings these are, but to draw from them."""
        if self.asking or self.reads_output or any(transform.plain for transform in self.transforms):
            return False
        others = Draws.of(draws).others
        edited = any(transform.applies(draw) for draw in others for transform in self.transforms)
        return not edited and all(draw.candidates is None for draw in others)

    def batch(self, draws: Sequence[Draw]) -> SamplingBatch:
        """The sampling parameters of the draws, whose settings these are, on the device."""
        counter = stage_named({"counter": host_tensor(Draws.of(draws).indices, np.int64)}, self.rows.device)
        return SamplingBatch(**self.columns, **counter)


def settings_of(draws: Sequence[Draw], device: torch.device, known: BatchSettings | None = None) -> BatchSettings:
    """The settings of some draws: the `known` ones, of an earlier batch, if its draws had the same parameters."""
    params = Draws.of(draws).params
    # Lists compare their entries by identity first, and the draws of a request share its parameters.
    if known is not None and known.params == params:
        return known
    asking = [row for row, p in enumerate(params) if p.logprobs is not None]
    # The backend must not apply a stage again that a transform has applied.
    warmed, highest, nucleus, likely = (TRANSFORMED[stage] for stage in BACKEND)
    columns = {
        "temperature": host_tensor([1.0 if warmed(p) else p.temperature for p in params], np.float32),
        "top_k": host_tensor([0 if highest(p) else p.top_k for p in params], np.int64),
        "top_p": host_tensor([1.0 if nucleus(p) else p.top_p for p in params], np.float32),
        "min_p": host_tensor([0.0 if likely(p) else p.min_p for p in params], np.float32),
        "seed": host_tensor([p.seed for p in params], np.int64),
    }
    arrived = stage_named({"rows": host_tensor(asking, np.int64), **columns}, device)
    return BatchSettings(
        params=params,
        transforms=[transform for transform in TRANSFORMS if any(map(transform.asked, params))],
        asking=asking,
        reads_output=any(p.reads_output for p in params),
        rows=arrived.pop("rows"),
        columns=arrived,
    )
