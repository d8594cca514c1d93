"""The settings of one request's draws.

Like `model.contract`, whose draws carry them, this module imports the standard library alone.
"""

from dataclasses import dataclass
from typing import Literal

FilterOrder = Literal["transformers", "vllm", "llama.cpp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """The settings by which one request draws its tokens and ends. Its values have been validated before.

    A temperature of 0 is greedy decoding. Every filter and penalty is off at its default.
    """

    max_tokens: int
    """Limit of generated tokens; a request that reaches it ends with the reason "length"."""
    min_tokens: int = 0
    """Number of tokens that must be generated before any of `stop_token_ids` can be drawn."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the request when drawn; they include the model's end tokens unless the request ignores those."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    """Number of standard deviations below the highest logit within which tokens are kept; 0 keeps all."""
    filter_order: FilterOrder = "transformers"
    """Whose order the filters come in; `model.sampling.orders` has each."""
    seed: int = 0
    """Seed of the random numbers, 0 <= seed < 2**63. Token i of a request depends on (seed, i) and its logits alone."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed: bytes | None = None
    """Mask of the tokens that may be drawn, as in `Draw`."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens, none empty, that the output never contains: the last of one is not drawn behind the others.
    """
    logprobs: int | None = None
    """Number n of likeliest tokens whose log-probabilities are reported beside the drawn token's; None: report none."""

    @property
    def reads_output(self) -> bool:
        """Whether a draw needs the request's earlier tokens themselves, and not only the logits that they led to."""
        return self.penalises or self.bans_runs

    @property
    def penalises(self) -> bool:
        """Whether tokens that came up are penalised."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0, 0, 1)

    @property
    def bans_runs(self) -> bool:
        """Whether a token is banned behind certain others."""
        return any(len(word) > 1 for word in self.bad_words)

    @property
    def restricts(self) -> bool:
        """Whether the request itself may leave no token to draw."""
        return self.allowed is not None or bool(self.bad_words) or self.min_tokens > 0
