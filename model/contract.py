"""What the engine asks of a model and what it gets back, in plain integers.

Standard library only: the scheduler, its tests and the HTTP side import this without torch, and msgspec
encodes these dataclasses as they are. Nothing here knows of text, of HTTP, or of tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

INVALID_TOKEN = -1
"""Stands for a token in `StepResult.tokens` where the logits held no number to choose by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request chooses its tokens and when it ends. Values are already validated and resolved.

    Greedy decoding is `temperature == 0`. A filter is off at its default.
    """

    max_tokens: int
    """The request ends with reason "length" at this many generated tokens."""
    min_tokens: int = 0
    """`stop_token_ids` cannot be drawn before this many tokens are generated."""
    stop_token_ids: tuple[int, ...] = ()
    """Drawing one of these ends the request; the model's end tokens are among them unless they are ignored."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int = 0
    """0 <= seed < 2**63. Token number i of a request depends on (seed, i) and the logits alone."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    """None: no log-probabilities. n: of the chosen token and of the n likeliest ones."""

    @property
    def reads_output(self) -> bool:
        """Whether a draw depends on the tokens before it beyond the logits."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0, 0, 1)


@dataclass(frozen=True, slots=True)
class Draw:
    """A token to be drawn from the logits of a chunk's last token.

    `index` is `len(output)`, or one more if the step before is still drawing the token between.
    """

    params: SamplingParams
    prompt: Sequence[int]
    """The request's prompt. This and the output are read where the draw is fresh."""
    output: Sequence[int]
    """The tokens generated so far, but for one that the step before this one is still drawing."""
    index: int
    """Which token of the output this is, from 0: the generator's counter."""
    row: int = 0
    """The request's own place among all that run, for what the runner remembers of it."""
    fresh: bool = True
    """The first draw since the request has this place: what the place remembers is another's."""
    allowed: bytes | None = None
    """A bit for each token, the first in the lowest bit of the first byte: whether it may be drawn. None: any may."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next known tokens of one request, whose keys and values are to be computed in this step."""

    tokens: Sequence[int]
    start: int
    """How many tokens of the request are in the KV cache already; the position of `tokens[0]`."""
    blocks: Sequence[int]
    """The request's block table, in order; it covers at least `start + len(tokens)` tokens."""
    draw: Draw | None
    """None while tokens that are known remain uncomputed: there is nothing to draw yet."""
    follows: int | None = None
    """Set where the last of `tokens` is still being drawn: the index, among the draws of the step before, of the draw
    whose token belongs there. `tokens` has INVALID_TOKEN in that place."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass: chunks of different requests, prompts and decoding ones alike."""

    chunks: Sequence[Chunk]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities under the model's own distribution (before temperature and filters)."""

    chosen: float
    top_tokens: list[int]
    top_logprobs: list[float]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step drew: an entry for each chunk of the plan that has a draw, in the plan's order."""

    tokens: list[int]
    logprobs: list[TokenLogprobs | None]
    forward_seconds: float = 0.0
    sample_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The integers the serving side must know of a loaded model."""

    vocab_size: int
    """The width of the logits: token ids lie in [0, vocab_size)."""
    max_context: int
    """Prompt and generated tokens together; what the model was made for, or the operator's lower setting."""
    num_blocks: int
    block_size: int
    """Tokens a block."""

    @property
    def capacity(self) -> int:
        """The most tokens of one request, prompt and completion together: what the context and the KV cache hold."""
        return min(self.max_context, self.num_blocks * self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerInfo:
    """What a runner was made of where its configuration left the choice open, for whoever operates it."""

    device: str
    """The device's name, such as "NVIDIA H200" or "cpu"."""
    dtype: str
    cache_dtype: str
    backend: str


GPU_SHARE = 0.9
"""Of a GPU's memory, for all that the process puts there; the rest is for what cannot be measured before serving."""
CPU_SHARE = 0.25
"""Of the memory that is free; the rest stays with the page cache and with whatever else runs on the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """What a runner is made from."""

    model: str
    """A GGUF file or a Hugging Face folder on this machine."""
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    """Threads of the arithmetic on a CPU; None: one for each usable core."""
    max_context: int | None = None
    """Tokens; None: what the model was made for."""
    block_size: int = 16
    """Tokens a block of the KV cache."""
    cache_memory: int | None = None
    """Bytes; None: a share of the memory that is free once the weights are loaded."""
    memory_share: float | None = None
    """Of the device's memory, for weights, a step's working memory and the cache together (GPU), or of what is free
    for the cache (CPU); None: `GPU_SHARE`, `CPU_SHARE`."""
    cache_dtype: str = "auto"
    """auto: the model's dtype; fp8: e4m3 with a scale for each head."""
    load_format: str = "auto"
    """auto: read the weights; dummy: the configuration alone, with random weights."""
    graphs: bool = True
    """Whether decoding steps on a GPU run from captured graphs."""
    batch_invariant: bool = False
    """Whether a request's logits must not depend, in any bit, on what else is in the batch."""
    max_running: int = 64
    """The most requests in a step; without `cache_memory`, the cache is made no larger than these could fill."""
    token_budget: int = 512
    """The most tokens in a step; a GPU's working memory is measured with as many."""


class DeviceLostError(Exception):
    """The device fails whatever it is asked from now on; only a new process can use it again."""


class PendingStep(Protocol):
    """A step that has been started."""

    def result(self) -> StepResult:
        """Wait for the step's end. Raises what went wrong in it, `DeviceLostError` among others. Called once."""


class Runner(Protocol):
    """Runs steps on a model, in the order they are started. It keeps the KV cache, and the last draws' tokens."""

    @property
    def limits(self) -> ModelLimits: ...

    @property
    def info(self) -> RunnerInfo: ...

    @property
    def lookahead(self) -> int:
        """How many steps it is worth starting before the result of the oldest is asked for: 1 where another device
        computes while the host prepares the next step, 0 where `start` itself computes.
        """

    def start(self, plan: StepPlan) -> PendingStep:
        """Begin a step. A plan's `follows` refer to the plan started just before it."""
