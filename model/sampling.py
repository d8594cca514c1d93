"""From logits to tokens: the ordered logit transforms, the draw, and log-probabilities.

Each transform edits a batch's logits [rows, vocab] in place, row i as `draws[i]` asks. It gathers the few entries that
requests ask for into one indexed operation; a batch that does not use it costs nothing. What makes a request end, and
how a backend draws, is not known here.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kernels.backend import Backend, SamplingBatch
from model.contract import INVALID_TOKEN, Draw, TokenLogprobs

Entry = tuple[int, int, float]
"""A row, a token, and a value for that logit."""


def choose(backend: Backend, logits: Tensor, draws: Sequence[Draw]) -> tuple[list[int], list[TokenLogprobs | None]]:
    """Draw a token of each row of `logits`, [rows, vocab] float32, which is overwritten; row i belongs to draws[i].

    Returns the tokens and, for the rows that ask, log-probabilities under the logits as they came in. A row whose
    logits are not numbers, or whose transforms left no token, has `INVALID_TOKEN` and no log-probabilities.
    """
    asking = [row for row, draw in enumerate(draws) if draw.params.logprobs is not None]
    # Taken before the transforms, so that those need no copy of the logits.
    scores = torch.log_softmax(logits[asking], dim=-1) if asking else None
    for transform in TRANSFORMS:
        transform(logits, draws)
    drawn = backend.sample(logits, sampling_batch(draws, logits.device))
    tokens = drawn.tolist()

    logprobs: list[TokenLogprobs | None] = [None] * len(draws)
    if scores is not None:
        tops = [draws[row].params.logprobs or 0 for row in asking]
        for row, report in zip(asking, report_logprobs(scores, drawn[asking], tops), strict=True):
            logprobs[row] = report if tokens[row] != INVALID_TOKEN else None
    return tokens, logprobs


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
            if len(draw.output) < draw.params.min_tokens
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


def to_columns(entries: list[Entry], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and tokens, int64, and values, float32, each [entries]."""
    rows, tokens, values = zip(*entries, strict=True)
    return (
        torch.tensor(rows, device=device),
        torch.tensor(tokens, device=device),
        torch.tensor(values, dtype=torch.float32, device=device),
    )


def sampling_batch(draws: Sequence[Draw], device: torch.device) -> SamplingBatch:
    """The tensors that a backend draws by."""
    params = [draw.params for draw in draws]

    def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return SamplingBatch(
        temperature=column([p.temperature for p in params], torch.float32),
        top_k=column([p.top_k for p in params], torch.int64),
        top_p=column([p.top_p for p in params], torch.float32),
        min_p=column([p.min_p for p in params], torch.float32),
        seed=column([p.seed for p in params], torch.int64),
        counter=column([len(draw.output) for draw in draws], torch.int64),
    )


def report_logprobs(scores: Tensor, tokens: Tensor, tops: list[int]) -> list[TokenLogprobs]:
    """For row i of the log-probabilities [rows, vocab]: of tokens[i], and the tops[i] highest, descending.

    Where tokens[i] is `INVALID_TOKEN` the report means nothing.
    """
    most = max(tops)
    top_scores, top_tokens = scores.topk(most)
    chosen = scores.gather(1, tokens.clamp(min=0)[:, None])
    # One transfer from the device; token ids are exact in float64.
    table = torch.cat([chosen, top_scores, top_tokens.double()], dim=1).tolist()
    return [
        TokenLogprobs(values[0], [int(token) for token in values[1 + most :][:top]], values[1 : 1 + top])
        for values, top in zip(table, tops, strict=True)
    ]
