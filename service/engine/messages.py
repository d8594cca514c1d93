"""Messages between the HTTP side and the engine process, as msgspec structs over ZeroMQ. Torch-free.

A request is named by the id its engine client gave it, never by anything an HTTP client sent.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from model.array import Array
from model.contract import NOTHING, Wanted
from model.inspection import Distribution, InspectionResult
from model.limits import ModelLimits, RunnerInfo
from model.sampling_params import SamplingParams
from model.token_logprobs import TokenLogprobs

FinishReason = Literal["stop", "length", "abort", "error", "refused", "lost"]
"""Reasons why a request ended.

stop: a stop token was drawn. length: max_tokens was reached. abort: it was cancelled. error: the engine failed it.
refused: it never began or could not go on, see `Refusal`. lost: the engine is gone, a reason of the client itself.
"""


class Grammar(msgspec.Struct, frozen=True):
    """The texts that a completion may be. Its completion ends where the grammar does."""

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    """choice is a list of texts; grammar is one in Lark's form or in GBNF."""
    source: str
    """The schema and the list as JSON, the others as they are."""
    field: str
    """Field of the HTTP request that the grammar came in, by which a refusal names it."""


class BeamSearch(msgspec.Struct, frozen=True):
    """A search for the likeliest completions, instead of a draw."""

    width: int
    """Number of beams."""
    count: int
    """Number of completions to return, at most `width`."""
    length_penalty: float = 1.0
    """A completion of n tokens is ranked by the sum of their log-probabilities, divided by n to this power."""
    early_stopping: Literal[True, False, "never"] = False
    """True: end with the first `width` completions. False: end when the likeliest beam ranks below all of these as it
    is. never: end when it would do so at any length."""
    logprobs: int | None = None
    """Number of likeliest tokens that are reported beside each of a completion; None: report no log-probabilities."""

    def top(self, stops: int) -> int:
        """Number of likeliest tokens of each beam that the search needs, where so many tokens end a completion."""
        return self.width + stops


class Beam(msgspec.Struct, frozen=True):
    """A completion that a beam search found."""

    tokens: list[int]
    logprobs: list[TokenLogprobs] | None
    """Log-probabilities of each of `tokens`, if they were asked for."""
    score: float
    finish_reason: Literal["stop", "length"]


class EngineRequest(msgspec.Struct, frozen=True):
    """A request to generate tokens, to score or embed a prompt, to look inside, or all of these together.

    The prompt has at least one token, and prompt and max_tokens fit the limits. With max_tokens 0 nothing is generated.
    """

    prompt: list[int]
    params: SamplingParams
    cache_salt: str = ""
    """Requests share prefix blocks only with requests of the same salt."""
    caller: str = ""
    """Label of the API key that sent the request, for the limits of each caller."""
    patience: float | None = None
    """Seconds that the request may wait for its first step; None means without limit."""
    wanted: Wanted = NOTHING
    grammar: Grammar | None = None
    beams: BeamSearch | None = None
    """A beam search; `params` are then greedy, and ask for the log-probabilities that `BeamSearch.top` tells."""


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Start a request."""

    id: int
    request: EngineRequest


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Stop a request and free its blocks; unknown and finished ids are ignored."""

    id: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Leave at once; the sender waits for requests in flight before, if they should finish."""


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """The reason why the engine did not begin a request that it could have run, or could not go on with it as asked."""

    code: Literal["deadline_exceeded", "invalid_grammar", "key_queue_full", "key_tokens_exceeded", "nothing_to_draw"]
    reason: str
    """One line for the HTTP client."""
    retry_after: float
    """Seconds until another try may succeed; 0 if none can."""
    field: str | None = None
    """Field of the request that is to blame, if one is."""


class RequestTimes(msgspec.Struct, frozen=True, array_like=True):
    """Durations of a request's phases so far, in seconds on the engine's clock; None for a phase not begun."""

    queue: float | None = None
    """From submission to the planning of the first step."""
    prefill: float | None = None
    """From there to the first token."""
    decode: float | None = None
    """From the first token to the newest."""


class Delta(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """One step's news of one request. Exactly one delta of a request has a finish reason: the last."""

    id: int
    tokens: list[int]
    """Newly drawn tokens, a stop token included; several where drafts were right; empty in an abort or an error."""
    logprobs: list[TokenLogprobs] | None
    """Log-probabilities, one entry for each of `tokens`, if the request asked for them."""
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    """Prompt tokens that were found in the prefix cache; the same number in every delta of a request."""
    error: str | None = None
    """One line for the operator's log and the client; only with reason "error" or "lost"."""
    refusal: Refusal | None = None
    """The reason for a refusal; only with reason "refused"."""
    scores: Sequence[TokenLogprobs] = ()
    """Log-probabilities of further prompt tokens, in order; the prompt's first token has none."""
    pooled: Array | None = None
    """[hidden]: a part of the request's embedding, which is the sum of all parts, for the mean divided by the number of
    prompt tokens."""
    inspection: InspectionResult | None = None
    """The inspection of further positions."""
    distributions: Sequence[Distribution] = ()
    """The distributions of trial draws at further positions, in order, then of the drawn token, as far as wanted."""
    beams: Sequence[Beam] = ()
    """The completions of a beam search, the best first, in its last delta, which has no tokens of its own."""
    times: RequestTimes | None = None
    """Present in every delta, because a client that finds a stop string reads no further one; None if the engine never
    took the request."""


class Drawn(msgspec.Struct, frozen=True, tag=True):
    """The news of requests that drew one token each in a step and go on, with nothing else to tell, in columns.

    Entry i of each column belongs to the same request; the columns have what `Delta` and `RequestTimes` have.
    """

    ids: list[int]
    tokens: list[int]
    cached_tokens: list[int]
    queue: list[float | None]
    prefill: list[float | None]
    decode: list[float]

    def deltas(self) -> list[Delta]:
        """The news one by one."""
        columns = (self.ids, self.tokens, self.cached_tokens, self.queue, self.prefill, self.decode)
        return [
            Delta(id, [token], None, None, cached, times=RequestTimes(queue, prefill, decode))
            for id, token, cached, queue, prefill, decode in zip(*columns, strict=True)
        ]

    def at(self, places: Sequence[int]) -> "Drawn":
        """The news at some places of the columns."""
        return Drawn(
            ids=[self.ids[place] for place in places],
            tokens=[self.tokens[place] for place in places],
            cached_tokens=[self.cached_tokens[place] for place in places],
            queue=[self.queue[place] for place in places],
            prefill=[self.prefill[place] for place in places],
            decode=[self.decode[place] for place in places],
        )


News = Delta | Drawn


def deltas_of(news: Iterable[News]) -> list[Delta]:
    """All news one by one."""
    return [delta for item in news for delta in (item.deltas() if isinstance(item, Drawn) else [item])]


STEP_TOKENS = tuple(2**power for power in range(14))
"""Upper bounds of the histogram's buckets for tokens per step."""


class Counters(msgspec.Struct, array_like=True):
    """Totals since the engine started."""

    steps: int = 0
    """Steps that ended, failed ones included."""
    step_tokens: list[int] = msgspec.field(default_factory=lambda: [0] * (len(STEP_TOKENS) + 1))
    """Histogram of tokens per step, with the upper bounds `STEP_TOKENS`; the last bucket is overflow."""
    computed_tokens: int = 0
    """Tokens computed in all steps, recomputation included."""
    prompt_tokens: int = 0
    """Prompt tokens whose keys and values were computed or found; each token of a request counts once."""
    cached_prompt_tokens: int = 0
    """Prompt tokens among `prompt_tokens` that were found in the prefix cache."""
    generated_tokens: int = 0
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    """Prompt tokens found in the prefix cache when they were looked up."""
    preemptions: int = 0
    drafts: int = 0
    """Times that a request got drafts in a step."""
    drafted_tokens: int = 0
    """Drafts that were computed: guesses of the tokens to come."""
    accepted_tokens: int = 0
    """Drafts among `drafted_tokens` that were right."""
    event_batches: int = 0
    """Batches of the prefix cache's events, dropped ones included."""
    dropped_event_batches: int = 0
    """Batches among `event_batches` that were dropped, because their publisher was far behind."""

    def add_step(self, tokens: int) -> None:
        """Count a step of so many tokens, which has ended."""
        self.steps += 1
        self.computed_tokens += tokens
        self.step_tokens[bisect_left(STEP_TOKENS, tokens)] += 1

    def copied(self) -> "Counters":
        """The totals of this moment; counting on does not change them."""
        return msgspec.structs.replace(self, step_tokens=[*self.step_tokens])


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """The engine's state after a step."""

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    """Blocks owned by requests; idle blocks in the prefix cache do not count."""
    blocks_total: int = 0
    totals: Counters = msgspec.field(default_factory=Counters)
    schedule_seconds: float = 0.0
    """Seconds of planning steps and taking in their results, in all since the engine started, as those below."""
    forward_seconds: float = 0.0
    """Seconds of the model's forward pass. On a GPU they overlap the other phases."""
    sample_seconds: float = 0.0
    """Seconds of the draws that were not part of the forward pass."""
    deliver_seconds: float = 0.0
    """Seconds of making and sending reports."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded."""

    limits: ModelLimits
    info: RunnerInfo
    pid: int
    """Process id of the engine."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine could not start; the message is one line that says why."""

    message: str


class Report(msgspec.Struct, frozen=True, tag=True):
    """Sent after a step that has news for a client, before a step that may take long, and as a heartbeat."""

    news: list[News]
    stats: EngineStats
    quiet_seconds: float | None = 0.0
    """Seconds within which the next report will come; above 0 only if a long step begins. None means that no step of
    this size has been seen and its time is unknown, because kernels may be compiled for it."""

    @property
    def deltas(self) -> list[Delta]:
        """All news one by one."""
        return deltas_of(self.news)


ToEngine = Submit | Cancel | Shutdown
FromEngine = Ready | Failed | Report
