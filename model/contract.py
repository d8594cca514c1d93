"""The contract between the engine and a model: steps, draws and results, all in plain integers.

This module imports the standard library alone: the scheduler, its tests and the HTTP side use it without torch, and
msgspec encodes these dataclasses as they are. It knows nothing of text, HTTP or tensors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, overload

from model.array import Array
from model.inspection import Distribution, InspectionRequest, InspectionResult
from model.limits import ModelLimits, RunnerInfo
from model.sampling_params import SamplingParams
from model.token_logprobs import TokenLogprobs

INVALID_TOKEN = -1
"""The entry of `ChunkResult.tokens` where no token could be drawn: the logits were NaN, or no token was left."""
LATE = b""
"""Stands for a mask that depends on a token still being drawn; the mask takes its place before the draw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The wishes of a request beside the tokens that are drawn for it."""

    prompt_logprobs: int | None = None
    """Number n of likeliest tokens that are reported beside each prompt token's own log-probability; None: nothing."""
    pooling: Literal["first", "last", "mean"] | None = None
    """The prompt's hidden rows that make up its embedding; None: no embedding."""
    inspect: InspectionRequest | None = None

    def first(self, prompt: int) -> int | None:
        """The first position that must be computed and not found in a cache, in a prompt of so many tokens.

        It is None if nothing is wanted of the prompt.
        """
        if self.prompt_logprobs is None and self.pooling is None and self.inspect is None:
            return None
        needed = [0] if self.prompt_logprobs is not None or self.pooling in ("first", "mean") else []
        if self.pooling == "last" or (self.inspect is not None and self.inspect.generated):
            needed.append(prompt - 1)
        if self.inspect is not None:
            needed += self.inspect.positions[:1]
        return min(needed, default=None)


NOTHING = Wanted()


@dataclass(slots=True)  # Not frozen: a step makes one for each request, and freezing takes most of the time.
class Draw:
    """A request for one token, drawn from the logits of a token of its chunk."""

    params: SamplingParams
    prompt: Sequence[int]
    """Tokens of the request's prompt; the runner reads them only where `fresh` is set."""
    output: Sequence[int]
    """Tokens generated so far, without one that the previous step is still drawing; read only where `fresh` is set."""
    index: int
    """Position of the drawn token in the output, from 0; it is also the counter of the random number generator.

    It is len(output), or len(output) + 1 while the previous step is still drawing the token before this one. Each
    draft of the chunk before the draw adds one.
    """
    row: int = 0
    """Number of the row in which the runner keeps this request's tokens; no two running requests share one."""
    fresh: bool = True
    """Whether the row holds what is of no use: tokens of another request, or of a draw that was taken back."""
    allowed: bytes | None = None
    """Mask of the tokens that may be drawn, one bit each; token 0 is the lowest bit of byte 0. None: all may.

    It may be LATE when its step is started.
    """
    candidates: int | None = None
    """Number of likeliest tokens that the draw's `Distribution` follows; None: no distribution is wanted."""

    @property
    def position(self) -> int:
        """Position in its request of the token from whose logits it is made."""
        return len(self.prompt) + self.index - 1


@dataclass(frozen=True, slots=True)
class Scores:
    """A wish for the log-probabilities of a chunk's tokens, each under the logits of the token before it.

    The first is that of `tokens[first + 1]`, the last that of `Chunk.next` if it is known.
    """

    first: int
    top: int
    """Number of likeliest tokens that are reported beside each."""


@dataclass(slots=True)  # Not frozen: a step makes one for each request, and freezing takes most of the time.
class Chunk:
    """The next tokens of one request; the step computes their keys and values.

    Known tokens come first. Behind them there may be drafts: guesses of the tokens that follow, computed in the hope
    that the draws before them give the same tokens. A draft is right if the draw from the token before it gives it;
    what was drawn and computed behind a wrong draft is worthless. Only requests whose draws do not read their output
    (`SamplingParams.reads_output`) get drafts.

    Drafts may be left open: they are all INVALID_TOKEN then, and a runner with a draft model guesses them.
    """

    tokens: Sequence[int]
    start: int
    """Number of the request's tokens that are already in the KV cache; also the position of `tokens[0]`."""
    blocks: Sequence[int]
    """Block table of the request, in order; it has room for at least `start + len(tokens)` tokens."""
    draws: Sequence[Draw] = ()
    """Tokens to draw from the logits of the last `len(draws)` of `tokens`: of the last known token and of each draft.

    It is empty while further known tokens of the request remain to be computed.
    """
    follows: int | None = None
    """Index of the previous step's draw that gives the last of `tokens`; None if that token is known.

    Where it is set, the last of `tokens` is INVALID_TOKEN, and the runner puts the drawn token in its place. Draws are
    counted over all chunks of a plan, in order.
    """

    next: int | None = None
    """The token behind `tokens`; None if it is to be drawn, or nobody wants its log-probability."""
    scores: Scores | None = None
    """Known tokens whose log-probabilities are wanted."""
    pooled: tuple[int, int] | None = None
    """The range of `tokens` whose hidden rows are to be added up, as begin and end; None: no hidden rows are wanted."""
    inspect: InspectionRequest | None = None
    """A wish to look inside at those of the request's positions that are in this chunk."""
    trials: Sequence[Draw] = ()
    """Draws that only show their distribution, each from the logits of the chunk's token at `Draw.position`.

    Their rows are numbered from 0 and have nothing to do with those of other draws; all are fresh.
    """

    @property
    def known(self) -> int:
        """Number of leading tokens that are no drafts."""
        return len(self.tokens) - max(0, len(self.draws) - 1)

    @property
    def is_open(self) -> bool:
        """Whether it has drafts that the runner is to guess."""
        return len(self.draws) > 1 and self.tokens[-1] == INVALID_TOKEN

    @property
    def stop(self) -> int:
        """Number of the request's tokens that are in the KV cache once the step has run, without drafts."""
        return self.start + self.known


@dataclass(frozen=True, slots=True)
class Decoding:
    """The chunks of requests that decode plainly, in columns: entry i of each belongs to the same request.

    Each chunk has one token and one draw, and nothing else is wanted of it. The draw is not its request's first in its
    row, and has neither a mask nor candidates. The columns have what `Chunk` and `Draw` have under these names.
    """

    tokens: Sequence[int] = ()
    starts: Sequence[int] = ()
    blocks: Sequence[Sequence[int]] = ()
    follows: Sequence[int | None] = ()
    params: Sequence[SamplingParams] = ()
    prompts: Sequence[Sequence[int]] = ()
    outputs: Sequence[Sequence[int]] = ()
    indices: Sequence[int] = ()
    rows: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def draws(self) -> list[Draw]:
        """The draws one by one."""
        columns = (self.params, self.prompts, self.outputs, self.indices, self.rows)
        return [Draw(*entries, fresh=False) for entries in zip(*columns, strict=True)]

    def chunks(self) -> list[Chunk]:
        """The chunks one by one."""
        columns = (self.tokens, self.starts, self.blocks, self.draws(), self.follows)
        return [
            Chunk([token], start, blocks, [draw], follows)
            for token, start, blocks, draw, follows in zip(*columns, strict=True)
        ]


class Draws(Sequence[Draw]):
    """The draws of a step. Draws of plain decoding come first, and are made one by one only for those who look at them.

    Columns have whatever is read of every draw in every step.
    """

    def __init__(self, decoding: Decoding, others: Sequence[Draw]) -> None:
        self.params = [*decoding.params, *[draw.params for draw in others]]
        self.indices = [*decoding.indices, *[draw.index for draw in others]]
        self.rows = [*decoding.rows, *[draw.row for draw in others]]
        self.others = others
        """The draws that are not of plain decoding; they alone may be fresh, or have a mask or candidates."""
        self._decoding = decoding
        self._all: Sequence[Draw] | None = None if decoding.tokens else others

    @classmethod
    def of(cls, draws: Sequence[Draw]) -> "Draws":
        """Some draws with their columns."""
        return draws if isinstance(draws, Draws) else cls(NO_DECODING, draws)

    def __len__(self) -> int:
        return len(self.params)

    def __iter__(self) -> Iterator[Draw]:
        return iter(self._singly())

    @overload
    def __getitem__(self, index: int) -> Draw: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Draw]: ...
    def __getitem__(self, index: int | slice) -> Draw | Sequence[Draw]:
        return self._singly()[index]

    def _singly(self) -> Sequence[Draw]:
        if self._all is None:
            self._all = [*self._decoding.draws(), *self.others]
        return self._all


NO_DECODING = Decoding()


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The work of one forward pass: one chunk for each of its requests, prompts and decoding requests together."""

    others: Sequence[Chunk]
    """The chunks that are not in `decoding`."""
    decoding: Decoding = NO_DECODING
    """Chunks in columns; they come before the others."""

    @property
    def chunks(self) -> Sequence[Chunk]:
        """All chunks one by one; each is made when this is read."""
        return [*self.decoding.chunks(), *self.others]

    @property
    def tokens(self) -> int:
        """Number of tokens that the step computes."""
        return len(self.decoding) + sum([len(chunk.tokens) for chunk in self.others])

    @property
    def awaits_masks(self) -> bool:
        """Whether a mask of a draw is LATE."""
        return any(draw.allowed is LATE for chunk in self.others for draw in chunk.draws)

    def draws(self) -> Draws:
        """All draws, in the order of the chunks."""
        return Draws(self.decoding, [draw for chunk in self.others for draw in chunk.draws])


@dataclass(slots=True)  # Not frozen: a step makes one for each request, and freezing takes most of the time.
class ChunkResult:
    """The results of one chunk."""

    tokens: Sequence[int] = ()
    """[draws]; INVALID_TOKEN where the draw failed."""
    logprobs: Sequence[TokenLogprobs | None] = ()
    """[draws]; None where the draw asked for none, or failed."""
    scores: Sequence[TokenLogprobs] = ()
    """Log-probabilities that `Chunk.scores` asked for, in the order of the tokens."""
    pooled: Array | None = None
    """[hidden]: the sum of the rows that `Chunk.pooled` names."""
    inspection: InspectionResult | None = None
    distributions: Sequence[Distribution] = ()
    """The distributions of the chunk's trials, then of its draws that ask for theirs."""
    drafts: Sequence[int] = ()
    """The drafts that the chunk left open, as they were guessed."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The results of one step."""

    others: Sequence[ChunkResult]
    """One entry for each of `StepPlan.others`, in their order."""
    tokens: Sequence[int] = ()
    """The token of each draw of `StepPlan.decoding`; INVALID_TOKEN where the draw failed."""
    forward_seconds: float = 0.0
    """Time of the forward pass, on the device's clock; it goes on to logits, and may go on to draws."""
    sample_seconds: float = 0.0
    """Time of the draws, on the device's clock, unless they were part of the forward pass."""

    @property
    def chunks(self) -> Sequence[ChunkResult]:
        """All results one by one, in the order of `StepPlan.chunks`."""
        return [*[ChunkResult([token], [None]) for token in self.tokens], *self.others]


class DeviceLostError(Exception):
    """A device failed in such a way that every later operation on it fails too; only a new process can use it again."""


class PendingStep(Protocol):
    """A step that has been started and may still be running."""

    def draw(self) -> None:
        """Begin the draws of a step whose plan awaited masks, which are there now.

        It is called once for such a step, before the next one is started, and for no other. Raises as `Runner.start`.
        """

    def result(self) -> StepResult:
        """Wait until the step has ended, and return its result. It is called once.

        Raises DeviceLostError if the device was lost, and any other error that occurred in the step.
        """


class Runner(Protocol):
    """A loaded model that runs steps in the order in which they are started.

    It owns the KV cache, and keeps the tokens of the newest step's draws for the step that follows.
    """

    @property
    def limits(self) -> ModelLimits: ...

    @property
    def info(self) -> RunnerInfo: ...

    @property
    def lookahead(self) -> int:
        """Number of further steps to start before the oldest one's result is awaited.

        It is 1 on a GPU, which computes one step while the host prepares the next; 0 on a CPU, where `start` computes.
        """

    def start(self, plan: StepPlan) -> PendingStep:
        """Start a step. `Chunk.follows` refers to the draws of the plan that was started just before this one.

        The draws of a plan that awaits masks are left to `PendingStep.draw`.
        """
