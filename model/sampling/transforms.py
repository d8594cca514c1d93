"""The transforms of logits before the draw, in order.

Each transform edits a batch's logits [rows, vocab] float32 in place: row i as draws[i] asks, and rows that do not ask
for it not at all. It gathers the edits of all rows into a few indexed operations, and costs nothing in a batch where no
request uses it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.backend import Backend
from model.contract import Draw, Draws
from model.sampling.memory import TokenMemory
from model.sampling.orders import TRANSFORMED
from model.sampling_params import SamplingParams
from model.transfer import host_tensor, stage

Entry = tuple[int, int, float]
"""(row, token, value to add to that logit)."""

_ANY = -2
"""In place of a token: any token, or none."""

Edit = Callable[[Tensor, Sequence[int], Draws, TokenMemory], None]
"""Edits some `rows` of a batch's logits; there is at least one."""


@dataclass(frozen=True, slots=True)
class Transform:
    """One transform: which draws ask for it, and what it does to their logits."""

    name: str
    """The name of the stage to those who look inside."""
    asked: Callable[[SamplingParams], bool]
    """Whether any draw of a request may ask for it; it is looked at once for a batch that stays the same."""
    due: Callable[[Draw], object] | None
    """Whether this draw of such a request does, as the truth of the value; None: every draw does."""
    edit: Edit
    plain: bool = True
    """Whether draws of plain decoding may ask for it."""

    def applies(self, draw: Draw) -> bool:
        """Whether a draw asks for it."""
        return self.asked(draw.params) and (self.due is None or bool(self.due(draw)))

    def __call__(self, logits: Tensor, draws: Sequence[Draw], memory: TokenMemory) -> None:
        """Edit the logits [rows, vocab] of those draws that ask for it; row i belongs to draws[i]."""
        columns = Draws.of(draws)
        first = 0 if self.plain else len(columns) - len(columns.others)
        rows = [row for row, params in enumerate(columns.params[first:], first) if self.asked(params)]
        if self.due is not None:
            rows = [row for row in rows if self.due(columns[row])]
        if rows:
            self.edit(logits, rows, columns, memory)


def transform(
    name: str,
    asked: Callable[[SamplingParams], bool],
    due: Callable[[Draw], object] | None = None,
    *,
    plain: bool = True,
) -> Callable[[Edit], Transform]:
    """Decorate an edit as the transform of the draws that it applies to."""
    return lambda edit: Transform(name, asked, due, edit, plain)


@transform("bias", lambda params: bool(params.logit_bias))
def add_bias(logits: Tensor, rows: Sequence[int], draws: Draws, memory: TokenMemory) -> None:
    """Add OpenAI's logit_bias: for each listed token, a number added to its logit."""
    add_entries(
        logits,
        [(row, token, bias) for row in rows for token, bias in draws.params[row].logit_bias],
    )


@transform("repetition_penalty", lambda params: params.repetition_penalty != 1)
def penalise_repetition(logits: Tensor, rows: Sequence[int], draws: Draws, memory: TokenMemory) -> None:
    """Weaken tokens of prompt and output, as `Backend.penalise` does."""
    memory.counts.penalise(logits, draws, rows, [(draws.params[row].repetition_penalty, 0.0, 0.0) for row in rows])


@transform(
    "frequency_penalty",
    lambda params: bool(params.presence_penalty or params.frequency_penalty),
    lambda draw: draw.index > 0,
)
def penalise_frequency(logits: Tensor, rows: Sequence[int], draws: Draws, memory: TokenMemory) -> None:
    """Apply OpenAI's penalties: a token that occurs n > 0 times in the output loses presence + n * frequency."""
    asked = [draws.params[row] for row in rows]
    memory.counts.penalise(logits, draws, rows, [(1.0, p.presence_penalty, p.frequency_penalty) for p in asked])


@transform("min_tokens", lambda params: params.min_tokens > 0, lambda draw: draw.index < draw.params.min_tokens)
def ban_early_stop(logits: Tensor, rows: Sequence[int], draws: Draws, memory: TokenMemory) -> None:
    """Ban `stop_token_ids` until `min_tokens` tokens have been generated."""
    add_entries(
        logits,
        [(row, token, float("-inf")) for row in rows for token in draws.params[row].stop_token_ids],
    )


@transform("grammar", lambda params: True, lambda draw: draw.allowed is not None, plain=False)
def allow_only(logits: Tensor, rows: Sequence[int], draws: Draws, memory: TokenMemory) -> None:
    """Ban all tokens outside `Draw.allowed`, the mask that a grammar may give."""
    _ban_others(logits, rows, [draws[row].allowed or b"" for row in rows], memory.backend)


@transform("allowed_token_ids", lambda params: params.allowed is not None)
def allow_listed(logits: Tensor, rows: Sequence[int], draws: Draws, memory: TokenMemory) -> None:
    """Ban all tokens outside the request's own mask."""
    _ban_others(logits, rows, [draws.params[row].allowed or b"" for row in rows], memory.backend)


def _ban_others(logits: Tensor, rows: Sequence[int], masks: Sequence[bytes], backend: Backend) -> None:
    """Ban all tokens outside a mask for each of the rows."""
    packed = torch.frombuffer(bytearray().join(masks), dtype=torch.uint8).view(len(rows), -1)
    if 8 * packed.shape[1] < logits.shape[1]:
        raise ValueError(f"a mask of {packed.shape[1]} bytes is too short for {logits.shape[1]} logits")
    index, octets = stage([host_tensor(rows, np.int64), packed], logits.device)
    backend.restrict(logits, index, octets)


@transform("bad_words", lambda params: bool(params.bad_words))
def ban_words(logits: Tensor, rows: Sequence[int], draws: Draws, memory: TokenMemory) -> None:
    """Ban the last token of each of a request's `bad_words` where the output ends with the tokens before it."""
    words = [(row, word) for row in rows for word in draws.params[row].bad_words]
    add_entries(logits, [(row, word[0], float("-inf")) for row, word in words if len(word) == 1])
    words = [(row, word) for row, word in words if 1 < len(word) <= draws[row].index + 1]
    if not words:
        return
    places = {row: place for place, row in enumerate(dict.fromkeys(row for row, _ in words))}
    width = max(len(word) for _, word in words) - 1
    recent = memory.recent([draws[row] for row in places], width)
    # A short word matches whatever the output has before its own tokens.
    before = [[_ANY] * (width + 1 - len(word)) + [*word[:-1]] for _, word in words]
    columns = [[places[row] for row, _ in words], [row for row, _ in words], [word[-1] for _, word in words]]
    place, index, last, wanted = stage([*map(torch.tensor, columns), torch.tensor(before)], logits.device)
    found = ((recent[place] == wanted) | (wanted == _ANY)).all(1)
    logits.index_put_((index, last), torch.where(found, float("-inf"), 0.0), accumulate=True)


def _filter(stage: str) -> Callable[[Edit], Transform]:
    """Decorate an edit as the filter of the draws that ask for it before the backend."""
    return transform(stage, TRANSFORMED[stage])


@_filter("top_n_sigma")
def keep_near_top(logits: Tensor, rows: Sequence[int], draws: Draws, memory: TokenMemory) -> None:
    """Keep the tokens whose logits are within `top_n_sigma` standard deviations of the highest.

    Source: Tang et al., arXiv 2411.07641. The deviation is that of the finite logits, and no temperature changes what
    is kept.
    """
    (index,) = stage([torch.tensor(rows)], logits.device)
    sigmas = _column([draws.params[row].top_n_sigma for row in rows], logits.device)
    scores = logits[index]
    finite = scores.isfinite()
    count = finite.sum(-1, keepdim=True)
    mean = scores.where(finite, 0.0).sum(-1, keepdim=True) / count
    deviation = (((scores - mean) ** 2).where(finite, 0.0).sum(-1, keepdim=True) / count).sqrt()
    dropped = scores < scores.amax(-1, keepdim=True) - sigmas * deviation
    logits[index] = scores.masked_fill(dropped, float("-inf"))


@_filter("temperature")
def warm(logits: Tensor, rows: Sequence[int], draws: Draws, memory: TokenMemory) -> None:
    """Divide the logits by the temperature, after their maximum is subtracted, so that none overflows."""
    (index,) = stage([torch.tensor(rows)], logits.device)
    scores = logits[index]
    temperature = _column([draws.params[row].temperature for row in rows], logits.device)
    logits[index] = (scores - scores.amax(-1, keepdim=True)) / temperature


@_filter("top_k")
def keep_highest(logits: Tensor, rows: Sequence[int], draws: Draws, memory: TokenMemory) -> None:
    """Keep the `top_k` highest logits; of tokens that tie, those with the lowest ids."""
    ks = [min(draws.params[row].top_k, logits.shape[1]) for row in rows]
    index, count = stage([torch.tensor(rows), torch.tensor(ks)[:, None]], logits.device)
    scores = logits[index]
    least = scores.topk(max(ks)).values.gather(1, count - 1)
    tied = scores == least
    kept = count - (scores > least).sum(-1, keepdim=True)
    dropped = (scores < least) | (tied & (tied.cumsum(-1) > kept))
    logits[index] = scores.masked_fill(dropped, float("-inf"))


@_filter("typical_p")
def keep_typical(logits: Tensor, rows: Sequence[int], draws: Draws, memory: TokenMemory) -> None:
    """Keep the tokens whose information is nearest to the distribution's entropy, until their mass reaches typical_p.

    Where tokens tie, those with the lowest ids come first. Source: Meister et al., arXiv 2202.00666.
    """
    (index,) = stage([torch.tensor(rows)], logits.device)
    mass = _column([draws.params[row].typical_p for row in rows], logits.device)
    scores = logits[index]
    information = -scores.log_softmax(-1)
    probability = information.neg().exp()
    # A token with probability 0 has infinite information, and contributes 0 to the entropy.
    entropy = torch.where(probability > 0, probability * information, 0.0).sum(-1, keepdim=True)
    order = (information - entropy).abs().sort(dim=-1, stable=True).indices
    logits[index] = _keep_first(scores, order, probability, mass)


@_filter("top_p")
def keep_nucleus(logits: Tensor, rows: Sequence[int], draws: Draws, memory: TokenMemory) -> None:
    """Keep the likeliest tokens, until their mass reaches `top_p`; of tokens that tie, those with the lowest ids."""
    (index,) = stage([torch.tensor(rows)], logits.device)
    mass = _column([draws.params[row].top_p for row in rows], logits.device)
    scores = logits[index]
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    logits[index] = _keep_first(scores, order, scores.softmax(-1, dtype=torch.float64), mass)


@_filter("min_p")
def keep_likely(logits: Tensor, rows: Sequence[int], draws: Draws, memory: TokenMemory) -> None:
    """Keep the tokens with at least `min_p` times the highest probability."""
    (index,) = stage([torch.tensor(rows)], logits.device)
    least = _column([draws.params[row].min_p for row in rows], logits.device)
    scores = logits[index]
    relative = (scores - scores.amax(-1, keepdim=True)).exp()
    logits[index] = scores.masked_fill(relative < least, float("-inf"))


def _keep_first(scores: Tensor, order: Tensor, probability: Tensor, mass: Tensor) -> Tensor:
    """The scores [rows, vocab] of the first tokens in `order` whose probabilities reach `mass` [rows, 1]; else -inf."""
    ranked = probability.gather(1, order)
    before = ranked.cumsum(-1) - ranked
    before[:, 0] = 0.0
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter_(1, order, before >= mass)
    return scores.masked_fill(dropped, float("-inf"))


TRANSFORMS: tuple[Transform, ...] = (
    add_bias,
    penalise_repetition,
    penalise_frequency,
    ban_early_stop,
    allow_only,
    allow_listed,
    ban_words,
    keep_near_top,
    warm,
    keep_highest,
    keep_typical,
    keep_nucleus,
    keep_likely,
)
"""All transforms, in the order in which they run.

The repetition penalty scales logits that already have their bias, and filters see the result of all before them. The
backend draws afterwards, with temperature, top-k, top-p and min-p in this order; `model.sampling.orders` has those that
come before that, which in every order are some of these, one after the other.
"""


def add_entries(logits: Tensor, entries: list[Entry]) -> None:
    """Add each entry's value to its logit; several entries for one logit add up."""
    if entries:
        rows, tokens, values = _to_columns(entries, logits.device)
        logits.index_put_((rows, tokens), values, accumulate=True)


def _to_columns(entries: list[Entry], device: torch.device) -> list[Tensor]:
    """The entries' rows and tokens, int64, and values, float32, each [entries], on `device`."""
    rows, tokens, values = zip(*entries, strict=True)
    return stage([torch.tensor(rows), torch.tensor(tokens), torch.tensor(values, dtype=torch.float32)], device)


def _column(values: list[float], device: torch.device) -> Tensor:
    """A column [values, 1] float32 on `device`."""
    return stage([torch.tensor(values, dtype=torch.float32)], device)[0][:, None]
