"""The inside of the model as NumPy's arrays: the answers of `/v1/inspect`, for programs.

An answer's views and these are the same, field by field; a view that was not asked for is None here too.
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from service.api.schemas.inspection import (
    InspectedAttention,
    InspectedDistribution,
    InspectedEmbedding,
    InspectedEncoding,
    InspectedResidual,
    InspectedRotation,
    InspectedToken,
    LensEntry,
    Numbers,
    Respelling,
    TokenInspection,
)
from service.api.schemas.inspection import Inspection as InspectionAnswer

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]
Texts = NDArray[np.object_]

NO_RANK = 0
"""In place of a rank where no token follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Attention weights; each row adds up to 1, but for attention sinks."""

    heads: list[tuple[int, int]] | None
    """Layer and head of each map; None where a layer's heads are reduced to one."""
    layers: list[int] | None
    """Layer of each map, where heads are reduced."""
    weights: Floats
    """[heads or layers, positions, keys], float32; beside a generated token without the axis of positions."""
    keys: Integers | None
    """With `top_keys`, the positions of the heaviest keys, in the shape of the weights; -1 where there is no further
    one. None: the weights are those of all keys."""

    @classmethod
    def of(cls, answer: InspectedAttention) -> Self:
        """The attention of an answer."""
        return cls(
            heads=answer.heads,
            layers=answer.layers,
            weights=_numbers(answer),
            keys=None if answer.keys is None else _whole(answer.keys, answer.shape),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """L2 norms of the residual stream, float32; beside a generated token without the axis of positions."""

    stream: Floats
    """[2 * layers + 1, positions]: of the embedding, then after each layer's attention and MLP in turn."""
    added: Floats
    """[2 * layers, positions]: of what each of those adds."""

    @classmethod
    def of(cls, answer: InspectedResidual) -> Self:
        """The norms of an answer."""
        return cls(stream=_numbers(answer.stream), added=_numbers(answer.added))


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """The tokens' rows in the embedding's table, and the tokens whose rows are nearest."""

    norms: Floats
    """[positions]: L2 norms, float32."""
    tokens: Integers
    """[positions, top]: the nearest by cosine."""
    texts: Texts
    """[positions, top]"""
    cosines: NDArray[np.float64]
    """[positions, top]"""
    vectors: Floats | None = None
    """[positions, hidden]: the rows themselves, float32; None where they were not asked for."""

    @classmethod
    def of(cls, answer: InspectedEmbedding) -> Self:
        """The embeddings of an answer."""
        shape = (len(answer.nearest), len(answer.nearest[0]) if answer.nearest else 0)
        near = [*chain.from_iterable(answer.nearest)]
        return cls(
            norms=_numbers(answer.norms),
            tokens=np.array([token["id"] for token in near], np.int64).reshape(shape),
            texts=_texts(token["text"] for token in near).reshape(shape),
            cosines=np.array([token["cosine"] for token in near], np.float64).reshape(shape),
            vectors=None if answer.vectors is None else _numbers(answer.vectors),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """The angles by which some layers rotate pairs of numbers of queries and keys."""

    layers: list[int]
    magnitude: float
    """Factor on cosines and sines."""
    frequencies: NDArray[np.float64]
    """[pairs], in radians per position."""
    angles: Floats
    """[positions, pairs], in radians from -pi to pi."""

    @classmethod
    def of(cls, answer: InspectedRotation) -> Self:
        """The angles of an answer."""
        return cls(
            layers=answer.layers,
            magnitude=answer.magnitude,
            frequencies=np.array(answer.frequencies, np.float64),
            angles=_numbers(answer.angles),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionEncoding:
    """The numbers that tell the model where the positions are; kinds that it does not have are None."""

    rotary: list[Rotation] | None
    learned: Floats | None
    """[positions, hidden]: rows that are added to the embedding."""
    alibi_slopes: NDArray[np.float64] | None
    """[heads]: the score of a key d positions back is lowered by slope times d."""

    @classmethod
    def of(cls, answer: InspectedEncoding) -> Self:
        """The encodings of an answer."""
        slopes = answer.alibi_slopes
        return cls(
            rotary=None if answer.rotary is None else [Rotation.of(rotation) for rotation in answer.rotary],
            learned=None if answer.learned is None else _numbers(answer.learned),
            alibi_slopes=None if slopes is None else np.array(slopes, np.float64),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lens:
    """The logit lens: what the model would say if it ended after the embedding, or after a layer.

    Beside a generated token all are without the axis of positions.
    """

    tokens: Integers
    """[layers + 1, positions, top]: the likeliest tokens, the embedding's first."""
    texts: Texts
    """[layers + 1, positions, top]"""
    logprobs: NDArray[np.float64]
    """[layers + 1, positions, top]"""
    next_logprob: NDArray[np.float64]
    """[layers + 1, positions]: of the token that followed; NaN where none did."""
    next_rank: Integers
    """[layers + 1, positions]: 1 for the likeliest; 0 where none followed."""

    @classmethod
    def of(cls, answer: Sequence[Any]) -> Self:
        """The lens of an answer, [layers + 1][positions] or [layers + 1]."""
        rows = [row if isinstance(row, list) else [row] for row in answer]
        shape = (len(rows), len(rows[0])) if answer and isinstance(answer[0], list) else (len(rows),)
        entries: list[LensEntry] = [*chain.from_iterable(rows)]
        top = len(entries[0]["likeliest"]) if entries else 0
        likeliest = [*chain.from_iterable(entry["likeliest"] for entry in entries)]
        return cls(
            tokens=np.array([token["id"] for token in likeliest], np.int64).reshape(*shape, top),
            texts=_texts(token["text"] for token in likeliest).reshape(*shape, top),
            logprobs=np.array([token["logprob"] for token in likeliest], np.float64).reshape(*shape, top),
            next_logprob=np.array([entry["next_logprob"] for entry in entries], np.float64).reshape(shape),
            next_rank=np.array([entry["next_rank"] or NO_RANK for entry in entries], np.int64).reshape(shape),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """The distribution from which a token is drawn, stage by stage; the last stage is drawn from."""

    position: int
    """The token is drawn from the logits of this position."""
    setting: int | None
    """Index in the request's `settings`; None for its own sampling."""
    stages: list[str]
    """Names of those that apply, in their order."""
    kept: Integers
    """[stages]: tokens with a probability above 0."""
    mass: NDArray[np.float64]
    """[stages]: probability that these had at the stage before."""
    entropy: NDArray[np.float64]
    """[stages], in nats."""
    tokens: Integers
    """[candidates]: by their probability at the last stage, the likeliest first."""
    texts: Texts
    """[candidates]"""
    probabilities: NDArray[np.float64]
    """[candidates, stages]"""
    noise: NDArray[np.float64]
    """[candidates]: exponential random numbers E; the drawn token is that of least E / probability. NaN where the
    likeliest is taken."""
    drawn: int

    @classmethod
    def of(cls, answer: InspectedDistribution) -> Self:
        """A distribution of an answer."""
        stages, candidates = answer.stages, answer.candidates
        return cls(
            position=answer.position,
            setting=answer.setting,
            stages=[stage.name for stage in stages],
            kept=np.array([stage.kept for stage in stages], np.int64),
            mass=np.array([stage.mass for stage in stages], np.float64),
            entropy=np.array([stage.entropy for stage in stages], np.float64),
            tokens=np.array([candidate["id"] for candidate in candidates], np.int64),
            texts=_texts(candidate["text"] for candidate in candidates),
            probabilities=np.array([candidate["probabilities"] for candidate in candidates], np.float64).reshape(
                len(candidates), len(stages)
            ),
            noise=np.array([candidate["noise"] for candidate in candidates], np.float64),
            drawn=answer.drawn,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The inside of the model while it reads a text and goes on with it."""

    tokens: list[InspectedToken]
    """The prompt's tokens and the generated ones, with `id`, `text`, `special` and `generated`, with details more."""
    text: str | None
    """With details: what the tokens spell."""
    spellings: list[Respelling] | None
    """The prompt in other spellings, and their tokens."""
    positions: Integers
    """[positions]: those that were looked at, ascending."""
    attention: Attention | None
    residual: Residual | None
    embedding: Embedding | None
    position_encoding: PositionEncoding | None
    lens: Lens | None
    distributions: list[Distribution] | None
    """Distributions of each position under each setting, then of the generated tokens."""

    @classmethod
    def of(cls, answer: InspectionAnswer) -> Self:
        """All that an answer tells."""
        shown, encoding = answer.distributions, answer.position_encoding
        return cls(
            tokens=answer.tokens,
            text=answer.text,
            spellings=answer.spellings,
            positions=np.array(answer.positions, np.int64),
            attention=None if answer.attention is None else Attention.of(answer.attention),
            residual=None if answer.residual is None else Residual.of(answer.residual),
            embedding=None if answer.embedding is None else Embedding.of(answer.embedding),
            position_encoding=None if encoding is None else PositionEncoding.of(encoding),
            lens=None if answer.lens is None else Lens.of(answer.lens),
            distributions=None if shown is None else [Distribution.of(one) for one in shown],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnInspection:
    """The inside of the model where it drew a token; its arrays have no axis of positions."""

    position: int
    """The token is drawn from the logits of this position."""
    token: int
    attention: Attention | None
    residual: Residual | None
    lens: Lens | None
    distribution: Distribution | None

    @classmethod
    def of(cls, answer: TokenInspection) -> Self:
        """All that an answer tells of a token."""
        return cls(
            position=answer.position,
            token=answer.token,
            attention=None if answer.attention is None else Attention.of(answer.attention),
            residual=None if answer.residual is None else Residual.of(answer.residual),
            lens=None if answer.lens is None else Lens.of(answer.lens),
            distribution=None if answer.distribution is None else Distribution.of(answer.distribution),
        )


def _numbers(numbers: Numbers) -> Floats:
    """An array in the precision in which it was asked for."""
    if isinstance(numbers.data, str):
        return np.frombuffer(base64.b64decode(numbers.data), "<f2").reshape(numbers.shape)
    return np.array(numbers.data, np.float32).reshape(numbers.shape)


def _whole(keys: Any, shape: Sequence[int]) -> Integers:
    """Whole numbers, which are written in another precision than fractions."""
    if isinstance(keys, str):
        keys = np.frombuffer(base64.b64decode(keys), "<i4")
    return np.array(keys, np.int64).reshape(shape)


def _texts(texts: Iterator[str]) -> Texts:
    """Texts of any length in an array."""
    return np.array([*texts], np.object_)
