"""From logits to tokens: the transforms, the draw, and log-probabilities.

What makes a request end, and how a backend draws, is not known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.backend import Backend, SamplingBatch
from model.contract import INVALID_TOKEN, Draw, TokenLogprobs
from model.sampling.memory import TokenMemory
from model.sampling.transforms import TRANSFORMS
from model.transfer import stage_named


@dataclass(frozen=True, slots=True)
class Choice:
    """What was drawn from each row of a batch of logits, on the device that drew it."""

    tokens: Tensor
    """int64 [rows]; `INVALID_TOKEN` where a row's logits are not numbers, or its transforms left no token."""
    logprobs: Tensor | None
    """float64 [rows that ask, 1 + 2 * the most that any asks for]: the token's log-probability, the highest ones in
    descending order, and their tokens. None if no row asks."""


def choose(backend: Backend, logits: Tensor, draws: Sequence[Draw], memory: TokenMemory) -> Choice:
    """Draw a token of each row of `logits`, [rows, vocab] float32, which is overwritten; row i belongs to draws[i].

    `memory` has the tokens of the draws before, and is given the new ones. Log-probabilities are taken under the logits
    as they come in. The host does not wait for the device.
    """
    asking = _asking(draws)
    memory.begin(draws)
    on_host = sampling_batch(draws)
    arrived = stage_named({"rows": torch.tensor(asking, dtype=torch.int64), **on_host.tensors()}, logits.device)
    rows = arrived.pop("rows")
    # Taken before the transforms, so that those need no copy of the logits.
    scores = torch.log_softmax(logits.index_select(0, rows), dim=-1) if asking else None
    for transform in TRANSFORMS:
        transform(logits, draws, memory)
    tokens = backend.sample(logits, on_host.with_tensors(arrived))
    memory.add(draws, tokens)
    if scores is None:
        return Choice(tokens, None)
    most = max(draws[row].params.logprobs or 0 for row in asking)
    return Choice(tokens, logprob_table(scores, tokens.index_select(0, rows), most))


def read_choice(choice: Choice, draws: Sequence[Draw]) -> tuple[list[int], list[TokenLogprobs | None]]:
    """The tokens, and the log-probabilities that draws ask for, of a choice that has been brought to the host.

    A row without a token has no log-probabilities.
    """
    tokens: list[int] = choice.tokens.tolist()
    logprobs: list[TokenLogprobs | None] = [None] * len(draws)
    if choice.logprobs is not None:
        for row, (chosen, *tops) in zip(_asking(draws), choice.logprobs.tolist(), strict=True):
            most, top = len(tops) // 2, draws[row].params.logprobs or 0
            if tokens[row] != INVALID_TOKEN:
                logprobs[row] = TokenLogprobs(chosen, [int(token) for token in tops[most:][:top]], tops[:top])
    return tokens, logprobs


def _asking(draws: Sequence[Draw]) -> list[int]:
    """The rows that log-probabilities are asked for."""
    return [row for row, draw in enumerate(draws) if draw.params.logprobs is not None]


def sampling_batch(draws: Sequence[Draw]) -> SamplingBatch:
    """How `draws` are drawn, on the host."""
    params = [draw.params for draw in draws]
    return SamplingBatch(
        temperature=torch.tensor([p.temperature for p in params], dtype=torch.float32),
        top_k=torch.tensor([p.top_k for p in params], dtype=torch.int64),
        top_p=torch.tensor([p.top_p for p in params], dtype=torch.float32),
        min_p=torch.tensor([p.min_p for p in params], dtype=torch.float32),
        seed=torch.tensor([p.seed for p in params], dtype=torch.int64),
        counter=torch.tensor([draw.index for draw in draws], dtype=torch.int64),
    )


def logprob_table(scores: Tensor, tokens: Tensor, most: int) -> Tensor:
    """`Choice.logprobs` of the log-probabilities [rows, vocab], for the tokens [rows] that were drawn.

    There are at most as many of the highest ones as the vocabulary has tokens.

    Where a token is `INVALID_TOKEN` its row means nothing.
    """
    chosen = scores.gather(1, tokens.clamp(min=0)[:, None])
    top_scores, top_tokens = scores.topk(min(most, scores.shape[1]))
    # One tensor for one transfer; token ids are exact in float64.
    return torch.cat([chosen.double(), top_scores.double(), top_tokens.double()], dim=1)
