"""Turns logits into tokens and log-probabilities: transforms first, then the backend's draw."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.backend import Backend, SamplingBatch
from model.contract import INVALID_TOKEN, Draw
from model.sampling.logprobs import logprob_table, read_entry
from model.sampling.memory import TokenMemory
from model.sampling.orders import BACKEND, TRANSFORMED
from model.sampling.transforms import TRANSFORMS
from model.sampling.waterfall import Waterfall, WaterfallTable
from model.seen import Distribution, TokenLogprobs
from model.transfer import host_tensor, stage_named, to_host


@dataclass(frozen=True, slots=True)
class Choice:
    """The tokens drawn from a batch of logits, and their log-probabilities, on the device that drew them."""

    tokens: Tensor
    """[rows] int64; `INVALID_TOKEN` where a row's logits are NaN, or the transforms left no token to draw."""
    logprobs: Tensor | None
    """A table as `logprob_table` makes it, of the rows that ask for log-probabilities; None if no row does."""
    waterfall: WaterfallTable | None = None
    """The distributions of the rows that ask for theirs; None if no row does."""

    def to_host(self) -> "Choice":
        """The choice in host memory, as `model.transfer.to_host` brings it."""
        return Choice(
            to_host(self.tokens),
            None if self.logprobs is None else to_host(self.logprobs),
            None if self.waterfall is None else self.waterfall.to_host(),
        )

    def distributions(self) -> dict[int, Distribution]:
        """The distributions by the rows that ask for theirs, from a choice in host memory."""
        return {} if self.waterfall is None else self.waterfall.read()


def choose(backend: Backend, logits: Tensor, draws: Sequence[Draw], memory: TokenMemory) -> Choice:
    """Draw a token from each row of `logits` [rows, vocab] float32, which is overwritten; row i belongs to draws[i].

    `memory` holds the tokens of the requests so far, and the new tokens are added to it. Log-probabilities are computed
    from the logits before any transform. The host does not wait for the device, unless a draw asks for its
    distribution.
    """
    asking = _asking(draws)
    memory.begin(draws)
    on_host = sampling_batch(draws)
    arrived = stage_named({"rows": torch.tensor(asking, dtype=torch.int64), **on_host.tensors()}, logits.device)
    rows = arrived.pop("rows")
    # Log-probabilities are computed before the transforms, which edit the logits in place.
    scores = torch.log_softmax(logits.index_select(0, rows), dim=-1) if asking else None
    watched = Waterfall(draws, logits) if any(draw.candidates is not None for draw in draws) else None
    for transform in TRANSFORMS:
        transform(logits, draws, memory)
        if watched is not None:
            watched.note(transform, logits)
    batch = on_host.with_tensors(arrived)
    tokens = backend.sample(logits, batch)
    memory.add(draws, tokens)
    waterfall = None if watched is None else watched.table(logits, batch, tokens)
    if scores is None:
        return Choice(tokens, None, waterfall)
    most = max(draws[row].params.logprobs or 0 for row in asking)
    return Choice(tokens, logprob_table(scores, tokens.index_select(0, rows), most), waterfall)


def read_choice(choice: Choice, draws: Sequence[Draw]) -> tuple[list[int], list[TokenLogprobs | None]]:
    """The tokens and the log-probabilities of `draws`, from a choice in host memory.

    An entry of the log-probabilities is None where the draw asked for none, or failed.
    """
    tokens: list[int] = choice.tokens.tolist()
    logprobs: list[TokenLogprobs | None] = [None] * len(draws)
    if choice.logprobs is not None:
        for row, entry in zip(_asking(draws), choice.logprobs.tolist(), strict=True):
            if tokens[row] != INVALID_TOKEN:
                logprobs[row] = read_entry(entry, draws[row].params.logprobs or 0)
    return tokens, logprobs


def _asking(draws: Sequence[Draw]) -> list[int]:
    """Indices of the draws that ask for log-probabilities."""
    return [row for row, draw in enumerate(draws) if draw.params.logprobs is not None]


def sampling_batch(draws: Sequence[Draw]) -> SamplingBatch:
    """The parameters of `draws` as tensors in host memory, one row for each draw."""
    params = [draw.params for draw in draws]
    # The backend must not apply a stage again that a transform has applied.
    warmed, highest, nucleus, likely = (TRANSFORMED[stage] for stage in BACKEND)
    return SamplingBatch(
        temperature=host_tensor([1.0 if warmed(p) else p.temperature for p in params], np.float32),
        top_k=host_tensor([0 if highest(p) else p.top_k for p in params], np.int64),
        top_p=host_tensor([1.0 if nucleus(p) else p.top_p for p in params], np.float32),
        min_p=host_tensor([0.0 if likely(p) else p.min_p for p in params], np.float32),
        seed=host_tensor([p.seed for p in params], np.int64),
        counter=host_tensor([draw.index for draw in draws], np.int64),
    )
