"""From logits to tokens: the ordered logit transforms, the draw, and log-probabilities.

Each transform edits a batch's logits [rows, vocab] in place, row i as `draws[i]` asks. It gathers the few entries that
requests ask for into one indexed operation; a batch that does not use it costs nothing. What makes a request end, and
how a backend draws, is not known here.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.backend import Backend, SamplingBatch
from model.contract import INVALID_TOKEN, Draw, TokenLogprobs
from model.transfer import stage

Entry = tuple[int, int, float]
"""A row, a token, and a value for that logit."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was drawn from each row of a batch of logits, on the device that drew it."""

    tokens: Tensor
    """int64 [rows]; `INVALID_TOKEN` where a row's logits are not numbers, or its transforms left no token."""
    logprobs: Tensor | None
    """float64 [rows that ask, 1 + 2 * the most that any asks for]: the token's log-probability, the highest ones in
    descending order, and their tokens. None if no row asks."""


def choose(backend: Backend, logits: Tensor, draws: Sequence[Draw]) -> Choice:
    """Draw a token of each row of `logits`, [rows, vocab] float32, which is overwritten; row i belongs to draws[i].

    Log-probabilities are taken under the logits as they come in. The host does not wait for the device.
    """
    asking = _asking(draws)
    *columns, rows = stage([*sampling_columns(draws), torch.tensor(asking, dtype=torch.int64)], logits.device)
    # Taken before the transforms, so that those need no copy of the logits.
    scores = torch.log_softmax(logits.index_select(0, rows), dim=-1) if asking else None
    for transform in TRANSFORMS:
        transform(logits, draws)
    tokens = backend.sample(logits, SamplingBatch(*columns))
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


def add_bias(logits: Tensor, draws: Sequence[Draw]) -> None:
    """OpenAI's logit_bias: a number added to a token's logit."""
    add_entries(
        logits,
        [(row, token, bias) for row, draw in enumerate(draws) for token, bias in draw.params.logit_bias],
    )


def penalise_repetition(logits: Tensor, draws: Sequence[Draw]) -> None:
    """Divide the positive logits of tokens in the prompt or the output, and multiply the negative ones.

    Keskar et al., arXiv 1909.05858, as transformers and vLLM do it.
    """
    entries = [
        (row, token, penalty)
        for row, draw in enumerate(draws)
        if (penalty := draw.params.repetition_penalty) != 1
        for token in {*draw.prompt, *draw.output}
    ]
    if entries:
        rows, tokens, penalties = to_columns(entries, logits.device)
        scores = logits[rows, tokens]
        logits[rows, tokens] = torch.where(scores > 0, scores / penalties, scores * penalties)


def penalise_frequency(logits: Tensor, draws: Sequence[Draw]) -> None:
    """OpenAI's penalties: a token that is n > 0 times in the output loses presence + n * frequency."""
    add_entries(
        logits,
        [
            (row, token, -params.presence_penalty - count * params.frequency_penalty)
            for row, draw in enumerate(draws)
            if (params := draw.params).presence_penalty or params.frequency_penalty
            for token, count in Counter(draw.output).items()
        ],
    )


def ban_early_stop(logits: Tensor, draws: Sequence[Draw]) -> None:
    """Ban `stop_token_ids` until `min_tokens` are generated."""
    add_entries(
        logits,
        [
            (row, token, float("-inf"))
            for row, draw in enumerate(draws)
            if draw.index < draw.params.min_tokens
            for token in draw.params.stop_token_ids
        ],
    )


TRANSFORMS: tuple[Callable[[Tensor, Sequence[Draw]], None], ...] = (
    add_bias,
    penalise_repetition,
    penalise_frequency,
    ban_early_stop,
)
"""In the order of transformers and vLLM: the repetition penalty scales a logit that has its bias already."""


def add_entries(logits: Tensor, entries: list[Entry]) -> None:
    """Add each entry's value to its logit; those of one logit add up."""
    if entries:
        rows, tokens, values = to_columns(entries, logits.device)
        logits.index_put_((rows, tokens), values, accumulate=True)


def to_columns(entries: list[Entry], device: torch.device) -> list[Tensor]:
    """Rows and tokens, int64, and values, float32, each [entries]."""
    rows, tokens, values = zip(*entries, strict=True)
    return stage([torch.tensor(rows), torch.tensor(tokens), torch.tensor(values, dtype=torch.float32)], device)


def sampling_columns(draws: Sequence[Draw]) -> list[Tensor]:
    """The fields of the `SamplingBatch` that `draws` ask for, in order, on the host."""
    params = [draw.params for draw in draws]
    return [
        torch.tensor([p.temperature for p in params], dtype=torch.float32),
        torch.tensor([p.top_k for p in params], dtype=torch.int64),
        torch.tensor([p.top_p for p in params], dtype=torch.float32),
        torch.tensor([p.min_p for p in params], dtype=torch.float32),
        torch.tensor([p.seed for p in params], dtype=torch.int64),
        torch.tensor([draw.index for draw in draws], dtype=torch.int64),
    ]


def logprob_table(scores: Tensor, tokens: Tensor, most: int) -> Tensor:
    """`Choice.logprobs` of the log-probabilities [rows, vocab], for the tokens [rows] that were drawn.

    There are at most as many of the highest ones as the vocabulary has tokens.

    Where a token is `INVALID_TOKEN` its row means nothing.
    """
    chosen = scores.gather(1, tokens.clamp(min=0)[:, None])
    top_scores, top_tokens = scores.topk(min(most, scores.shape[1]))
    # One tensor for one transfer; token ids are exact in float64.
    return torch.cat([chosen.double(), top_scores.double(), top_tokens.double()], dim=1)
