"""What crosses between the HTTP side and the engine process, as msgspec structs over ZeroMQ. Torch-free.

A request is named by the id its client object gave it, never by anything an HTTP client sent.
"""

from typing import Literal

import msgspec

from model.contract import ModelLimits, RunnerInfo, SamplingParams, TokenLogprobs

FinishReason = Literal["stop", "length", "abort", "error", "refused", "lost"]
"""stop: a stop token was drawn. length: max_tokens. abort: cancelled. error: the engine failed the request. refused: it
never began, see `Refusal`. lost: there is no engine any more, which the client finds out and no engine says."""


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Start generating. The prompt has at least one token, and with max_tokens it fits the limits."""

    id: int
    prompt: list[int]
    params: SamplingParams
    cache_salt: str = ""
    """Requests share prefix blocks only within one salt."""
    caller: str = ""
    """Whose it is, for limits that hold for each caller."""
    patience: float | None = None
    """Seconds that it may wait for its first step; None: as long as it takes."""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Stop a request and free its blocks; unknown or finished ids are ignored."""

    id: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Leave at once; whoever wants requests in flight to finish waits for them first."""


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """Why the engine did not begin a request that it could have run."""

    code: Literal["deadline_exceeded", "key_queue_full", "key_tokens_exceeded"]
    reason: str
    """One line for the client."""
    retry_after: float
    """Seconds until it may be worth another try."""


class RequestTimes(msgspec.Struct, frozen=True, array_like=True):
    """How long a request has been where, so far: seconds on the engine's clock, None for what it has not come to."""

    queue: float | None = None
    """From its submission to the first step planned with it."""
    prefill: float | None = None
    """From there to its first token."""
    decode: float | None = None
    """From its first token to its newest."""


class Delta(msgspec.Struct, frozen=True):
    """What one step added to one request. The last one has a finish reason; there is exactly one such."""

    id: int
    tokens: list[int]
    """Newly drawn, a stop token included; empty in an abort or an error."""
    logprobs: list[TokenLogprobs] | None
    """One for each of `tokens`, if the request asked for them."""
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    """Prompt tokens that were found in the prefix cache (the same in every delta of a request)."""
    error: str | None = None
    """With reason "error" or "lost": one line for the operator's log and the client."""
    refusal: Refusal | None = None
    """With reason "refused"."""
    times: RequestTimes | None = None
    """In every delta, since who finds a stop string needs no further one; None if the engine never took the request."""


STEP_TOKENS = tuple(2**power for power in range(14))
"""Upper bounds by which steps are counted, in tokens."""


class EngineStats(msgspec.Struct, frozen=True):
    """The engine's state after a step. Counters are totals since the engine started."""

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    """Blocks owned by requests; cached blocks that nobody owns do not count."""
    blocks_total: int = 0
    steps: int = 0
    """Steps that ended, failed ones among them."""
    step_tokens: list[int] = msgspec.field(default_factory=lambda: [0] * (len(STEP_TOKENS) + 1))
    """How many steps computed at most so many tokens as each of `STEP_TOKENS` says, and more than the bound before it;
    the last: more than all of them."""
    computed_tokens: int = 0
    """Tokens of all steps, recomputation included."""
    prompt_tokens: int = 0
    """Prompt tokens whose keys and values were computed or found; each token of a request counts once."""
    cached_prompt_tokens: int = 0
    """Those of them that were found in the prefix cache."""
    generated_tokens: int = 0
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    """Prompt tokens found there."""
    preemptions: int = 0
    schedule_seconds: float = 0.0
    """Planning steps and taking in their results."""
    forward_seconds: float = 0.0
    """In the model. Where a device computes apart from the host, these are the device's and pass beside the others."""
    sample_seconds: float = 0.0
    deliver_seconds: float = 0.0
    """Making and sending reports."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded."""

    limits: ModelLimits
    info: RunnerInfo
    pid: int
    """The engine's process."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine could not start; one line that says why."""

    message: str


class Report(msgspec.Struct, frozen=True, tag=True):
    """Sent after every step, before one that may take long, and as a heartbeat while idle."""

    deltas: list[Delta]
    stats: EngineStats
    patience: float | None = 0.0
    """Seconds in which the next report will come, where that may be longer than usual, since a long step begins. None:
    there was no such step yet; kernels may be compiled for it."""


ToEngine = Submit | Cancel | Shutdown
FromEngine = Ready | Failed | Report
