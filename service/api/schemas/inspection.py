"""Inspections of the model, as clients get them."""

from typing import Annotated, Literal, NotRequired

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from service.api.schemas.arrays import ArrayData
from service.text.respelling import Spelling


class Numbers(BaseModel):
    """An array: nested lists, or little-endian float16 in base64."""

    shape: list[int]
    data: ArrayData


class InspectedAttention(Numbers):
    """Attention weights [heads, positions, keys]; each row adds up to 1, but for attention sinks.

    Reduced over heads they are [layers, positions, keys]; with top_keys the last axis is that of the heaviest keys.
    """

    heads: list[tuple[int, int]] | None = Field(None, description="Layer and head; absent where heads are reduced.")
    layers: list[int] | None = Field(None, description="Where heads are reduced.")
    keys: ArrayData = Field(
        None,
        description="With top_keys the positions of these keys, in the shape of the weights; -1 where no further key "
        "has a weight. In base64 as little-endian int32.",
    )


class InspectedResidual(BaseModel):
    """L2 norms of the residual stream."""

    stream: Numbers = Field(description="[2 * layers + 1, positions]: of the embedding, then after attention, MLP, ...")
    added: Numbers = Field(description="[2 * layers, positions]: the norm of what each of them adds.")


# Hundreds of entries come with each token, and dictionaries are made in a small part of a model's time.
class ListedToken(TypedDict):
    """A token of a list of the nearest or the likeliest ones."""

    id: int
    text: str
    bytes: NotRequired[Annotated[list[int], Field(description="Only where they are no whole characters.")]]


class NearToken(ListedToken):
    """A token whose embedding lies near another's."""

    cosine: float


class InspectedEmbedding(BaseModel):
    """The tokens' rows in the embedding's table, before any scale or norm."""

    norms: Numbers = Field(description="[positions]: L2 norms.")
    nearest: list[list[NearToken]] = Field(description="[positions]: the other tokens of largest cosine.")
    vectors: Numbers | None = Field(None, description="[positions, hidden]: the rows, with embedding_vectors.")


class InspectedRotation(BaseModel):
    """The angles by which some layers rotate pairs of numbers of queries and keys."""

    layers: list[int]
    magnitude: float = Field(description="Factor on cosines and sines.")
    frequencies: list[float] = Field(description="[pairs], in radians per position.")
    angles: Numbers = Field(description="[positions, pairs], in radians from -pi to pi.")


class InspectedEncoding(BaseModel):
    """The numbers that tell the model where the positions are; kinds that the model does not have are missing."""

    rotary: list[InspectedRotation] | None = None
    learned: Numbers | None = Field(None, description="[positions, hidden]: rows that are added to the embedding.")
    alibi_slopes: list[float] | None = Field(
        None, description="[heads]: the score of a key d positions back is lowered by slope times d."
    )


class LensToken(ListedToken):
    """A token that a layer's residual stream would give."""

    logprob: float


class LensEntry(TypedDict):
    """The logit lens at one layer and position."""

    likeliest: list[LensToken]
    next_logprob: Annotated[float | None, Field(description="Of the token that follows; null if none does.")]
    next_rank: int | None


class InspectedStage(BaseModel):
    """A stage on the way from the model's distribution to the one that is drawn from."""

    name: str
    kept: int = Field(description="Tokens with a probability above 0.")
    mass: float = Field(description="Probability that these tokens had at the stage before.")
    entropy: float = Field(description="In nats.")


class Candidate(ListedToken):
    """A token through the stages."""

    probabilities: Annotated[list[float], Field(description="One for each stage.")]
    noise: Annotated[
        float | None,
        Field(
            description="Exponential random number E: the token drawn is the one of least E / probability. Null where "
            "the likeliest is taken."
        ),
    ]


class InspectedDistribution(BaseModel):
    """The distribution from which a token is drawn, stage by stage; the last stage is drawn from."""

    position: int = Field(description="The token is drawn from the logits of this position.")
    setting: int | None = Field(description="Index in the request's settings; null for its own sampling.")
    stages: list[InspectedStage] = Field(description="Those that apply, in their order.")
    candidates: list[Candidate] = Field(description="By their probability at the last stage, the likeliest first.")
    drawn: int


class TokenInspection(BaseModel):
    """The inside of the model where it drew a token; without the axis of positions that an inspection's arrays have."""

    position: int = Field(description="The token is drawn from the logits of this position.")
    token: int
    attention: InspectedAttention | None = Field(None, description="[heads, keys]")
    residual: InspectedResidual | None = None
    lens: list[LensEntry] | None = Field(None, description="[layers + 1]")
    distribution: InspectedDistribution | None = None


class SpeltToken(BaseModel):
    """A token, and what it spells."""

    id: int
    text: str = Field(description="Bytes that are no characters are replaced.")
    special: bool
    bytes: list[int] | None = Field(None, description="With details.")
    offsets: tuple[int, int] | None = Field(
        None,
        description="With details: its place in the text, [start, end) in characters. Each begins where the one before "
        "it ended, and a character of several tokens is in the last of them.",
    )


class InspectedToken(SpeltToken):
    """A token of the prompt, or a generated one."""

    generated: bool


class Respelling(BaseModel):
    """The prompt in another spelling, and what the tokenizer makes of it."""

    name: Spelling
    text: str
    tokens: list[SpeltToken]


class Inspection(BaseModel):
    """The answer to a request to `/v1/inspect`."""

    object: Literal["inspection"]
    model: str
    tokens: list[InspectedToken]
    text: str | None = Field(None, description="With details: what the tokens spell, special ones included.")
    spellings: list[Respelling] | None = Field(None, description="Those that differ from the prompt.")
    positions: list[int]
    offsets: list[tuple[int, int]] | None = Field(
        None, description="The place of each token, [start, end) in characters, in the text that /detokenize gives."
    )
    attention: InspectedAttention | None = None
    residual: InspectedResidual | None = None
    embedding: InspectedEmbedding | None = None
    position_encoding: InspectedEncoding | None = None
    lens: list[list[LensEntry]] | None = Field(
        None, description="[layers + 1][positions]: the embedding, then each layer's stream."
    )
    distributions: list[InspectedDistribution] | None = Field(
        None, description="Of each position under each setting, then of the generated tokens."
    )
