"""Turns logits into tokens and log-probabilities: transforms first, then the backend's draw."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kernels.backend import Backend, SamplingBatch
from model.contract import INVALID_TOKEN, Draw, Draws
from model.inspection import Distribution
from model.sampling.logprobs import logprob_table, read_entry
from model.sampling.memory import TokenMemory
from model.sampling.settings import BatchSettings
from model.sampling.waterfall import Waterfall, WaterfallTable
from model.token_logprobs import TokenLogprobs
from model.transfer import to_host


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


def choose(
    backend: Backend,
    logits: Tensor,
    draws: Sequence[Draw],
    memory: TokenMemory,
    settings: BatchSettings,
    batch: SamplingBatch,
) -> Choice:
    """Draw a token from each row of `logits` [rows, vocab] float32, which is overwritten; row i belongs to draws[i].

    `memory` holds the tokens of the requests so far, and the new tokens are added to it; `settings` are those of the
    draws, and `batch` has them for the backend. Log-probabilities are computed from the logits before any
    transform. The host does not wait for the device, unless a draw asks for its distribution.
    """
    memory.begin(draws)
    # Log-probabilities are those of the logits before the transforms, which edit them in place.
    kept = logits.index_select(0, settings.rows) if settings.asking else None
    shown = any(draw.candidates is not None for draw in Draws.of(draws).others)
    watched = Waterfall(backend, draws, logits) if shown else None
    for transform in settings.transforms:
        transform(logits, draws, memory)
        if watched is not None:
            watched.note(transform, logits)
    tokens = backend.sample(logits, batch)
    if settings.reads_output:
        memory.add(draws, tokens)
    waterfall = None if watched is None else watched.table(logits, batch, tokens)
    if kept is None:
        return Choice(tokens, None, waterfall)
    most = max(draws[row].params.logprobs or 0 for row in settings.asking)
    table = logprob_table(backend, kept, tokens.index_select(0, settings.rows), most)
    return Choice(tokens, table, waterfall)


def read_choice(choice: Choice, draws: Sequence[Draw]) -> tuple[list[int], list[TokenLogprobs | None]]:
    """The tokens and the log-probabilities of `draws`, from a choice in host memory.

    An entry of the log-probabilities is None where the draw asked for none, or failed.
    """
    tokens: list[int] = choice.tokens.tolist()
    logprobs: list[TokenLogprobs | None] = [None] * len(draws)
    if choice.logprobs is not None:
        asking = [row for row, draw in enumerate(draws) if draw.params.logprobs is not None]
        for row, entry in zip(asking, choice.logprobs.tolist(), strict=True):
            if tokens[row] != INVALID_TOKEN:
                logprobs[row] = read_entry(entry, draws[row].params.logprobs or 0)
    return tokens, logprobs
