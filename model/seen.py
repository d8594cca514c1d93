"""The numbers that a step shows of a model beside the tokens that it draws.

Like `model.contract`, whose results carry them, this module imports the standard library alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities under the model's own distribution, before bias, penalties, temperature and filters."""

    chosen: float
    """The drawn token's, or the known one's."""
    top_tokens: list[int]
    """The likeliest tokens, in descending order."""
    top_logprobs: list[float]
    """The log-probability of each of `top_tokens`."""
    rank: int
    """Number of tokens that are likelier than the chosen one, plus 1."""


@dataclass(frozen=True, slots=True)
class Array:
    """Numbers as little-endian float32 in C order."""

    shape: Sequence[int]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """The embedding of the token at each of some positions: its row of the table, before any scale or norm."""

    norms: Array
    """[positions]: L2."""
    nearest: Sequence[Sequence[tuple[int, float]]]
    """[positions]: the other tokens of largest cosine, and that cosine."""
    vectors: Array | None = None
    """[positions, hidden]: the rows themselves; None where they were not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryAngles:
    """The angles by which some layers rotate queries and keys (Su et al., arXiv 2104.09864)."""

    layers: Sequence[int]
    magnitude: float
    """Factor on cosines and sines."""
    frequencies: Array
    """[pairs], in radians per position."""
    angles: Array
    """[positions, pairs], in radians from -pi to pi."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionEncoding:
    """The numbers that tell the decoder where some positions are."""

    rotary: Sequence[RotaryAngles]
    learned: Array | None
    """[positions, hidden]: rows that are added to the embedding; None where the model has none."""
    slopes: Array | None
    """[heads]: ALiBi's; the score of a key that lies d positions back is lowered by slope * d. None: no ALiBi."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """The recorded inside of the decoder at some positions of one request; what was not asked for is None."""

    positions: Sequence[int]
    attention: Array | None = None
    """[maps, positions, keys]: attention weights; 0 where a position sees no key.

    There is a map for each of `Trace.heads`, in their order, or with a reduction for each layer that they name, in the
    order in which they first do. With `Trace.top_keys` it is [maps, positions, top_keys], the heaviest first."""
    attention_keys: Array | None = None
    """[maps, positions, top_keys]: the keys of the heaviest weights; -1 where no further key has a weight. A float32
    holds every position below 2^24 exactly."""
    stream: Array | None = None
    """[2 * layers + 1, positions]: the L2 norm of the residual stream, which begins as the embedding; attention and MLP
    of each layer add to it in turn."""
    added: Array | None = None
    """[2 * layers, positions]: the L2 norm of what each of those adds."""
    lens: Sequence[Sequence[TokenLogprobs]] | None = None
    """[layers + 1][positions]: log-probabilities that the embedding and each layer's stream would give; `chosen` is the
    token that follows, known or drawn."""
    embedding: Embedded | None = None
    encoding: PositionEncoding | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage on the way from the model's distribution to the one that a token is drawn from."""

    name: str
    """"raw", or the setting that makes the stage, such as "top_p"; "bias", "grammar"."""
    kept: int
    """Number of tokens with a probability above 0."""
    mass: float
    """Probability that these tokens had at the stage before."""
    entropy: float
    """In nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """The distribution that a token was drawn from, stage by stage. The last stage is the one that was drawn from."""

    position: int
    """Position from whose logits the token was drawn."""
    stages: Sequence[Stage]
    """The model's own, then those that the draw's settings ask for, in the order in which they are applied."""
    candidates: Sequence[int]
    """The likeliest tokens of the last stage, of the first one, and the drawn token, by their probability at last."""
    probabilities: Sequence[Sequence[float]]
    """[candidates][stages]."""
    noise: Sequence[float] | None
    """[candidates]: exponential random numbers E; the token drawn is the one of least E / probability among all. None
    where the likeliest token is taken."""
    drawn: int
    """INVALID_TOKEN if the draw failed; the numbers have no meaning then."""
