"""Looking inside the model: the request for it, and what comes of it.

| name | is |
|---|---|
| inspection request (`InspectionRequest`) | one request's wish: which parts of the decoder, at which positions |
| `inspect` | the field that holds it, from the body of an HTTP request to a chunk of a step |
| probe (`model.decoder.Probe`) | the object that the decoder shows queries and residual streams to, in a forward pass |
| inspection result (`InspectionResult`) | the numbers at some positions of one request, from one chunk |
| `inspection` | the field that holds the result, from a chunk's result to the JSON of an answer |
| inspection (`service.api.schemas.inspection`) | the results of all positions as a client gets them |
| stream | the residual stream, which attention and MLP of each layer add to |
| logit lens | the tokens that a layer's stream would give if the layers above were left out |
| attention map | the weights of one head, or of a layer's heads reduced to one, for queries and keys |
| distribution | a draw's probabilities, in stages from the model's own to those that the token is drawn from |
| trial | a draw that is made for its distribution alone |

Traces are OpenTelemetry's spans of HTTP requests (`service.observability.traces`); the probes of `service.api` are
Kubernetes' own.

Like `model.contract`, whose chunks and results carry them, this module imports the standard library alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model.array import Array
from model.sampling_params import SamplingParams
from model.token_logprobs import TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectionRequest:
    """A wish to look inside the decoder at positions of one request. Positions count from its first token."""

    positions: Sequence[int] = ()
    """Ascending positions of the prompt."""
    generated: bool = False
    """Whether the positions from whose logits tokens are drawn are recorded too, beginning with the prompt's last."""
    heads: Sequence[tuple[int, int]] = ()
    """(layer, head) pairs whose attention weights are recorded."""
    reduction: Literal["mean", "max"] | None = None
    """The way in which the named heads of a layer become one map; None: each keeps its own."""
    top_keys: int | None = None
    """Number of heaviest keys of each row that are recorded; None: all keys."""
    stream: bool = False
    """Whether the residual stream's norms are recorded, and those of what attention and MLP add to it."""
    lens: int | None = None
    """Number of likeliest tokens that each layer's residual stream would give; None: no such logit lens."""
    embedding: int | None = None
    """Number of tokens with the nearest embeddings that are told of each position's token; None: nothing is."""
    vectors: bool = False
    """Whether the embeddings themselves are told with `embedding`."""
    encoding: bool = False
    """Whether the encoding of positions is told."""
    distribution: int | None = None
    """Number of likeliest tokens that each `Distribution` follows; None: no distributions.

    They are those of the draws if `generated` is set, and those of `settings`.
    """
    settings: Sequence[SamplingParams] = ()
    """Settings by which a token is drawn on trial at each of `positions`, as the first behind a prompt that ends there.
    """

    @property
    def needs_probe(self) -> bool:
        """Whether the forward pass itself is looked at, and not only what goes in and the logits that come of it."""
        return bool(self.heads) or self.stream or self.lens is not None

    @property
    def has_result(self) -> bool:
        """Whether an `InspectionResult` comes of it, and not distributions alone."""
        return self.distribution is None or self.needs_probe or self.embedding is not None or self.encoding


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
class InspectionResult:
    """The numbers of the decoder at some positions of one request; what was not asked for is None."""

    positions: Sequence[int]
    attention: Array | None = None
    """[maps, positions, keys]: attention weights; 0 where a position sees no key.

    There is a map for each of `InspectionRequest.heads`, in their order, or with a reduction for each layer that they
    name, in the order in which they first do. With `top_keys` it is [maps, positions, top_keys], the heaviest first."""
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
