"""What is seen inside the model as NumPy's arrays: the answers of `/v1/inspect`, for programs.

An answer's views and these are the same, field by field; a view that was not asked for is None here too.
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from service.api.schemas.answers import (
    InspectedAttention,
    InspectedDistribution,
    InspectedResidual,
    InspectedToken,
    LensEntry,
    Numbers,
    TokenInspection,
)
from service.api.schemas.answers import Inspection as InspectionAnswer

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]
Texts = NDArray[np.object_]

NO_RANK = 0
"""In place of a rank where no token follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Attention weights; each row adds up to 1, but for attention sinks."""

    heads: list[tuple[int, int]] | None
    """Layer and head of each map; None where heads are reduced."""
    layers: list[int] | None = None
    """Layer of each map where heads are reduced."""
    weights: Floats
    """[heads or layers, positions, keys], float32; beside a generated token [heads or layers, keys]."""
    keys: NDArray[np.int32] | None = None
    """With `top_keys` the position of each weight's key, in the shape of the weights; -1 where there is none."""

    @classmethod
    def of(cls, answer: InspectedAttention) -> Self:
        """The attention of an answer."""
        keys = None if answer.keys is None else _array(answer.keys, answer.shape, "<i4", np.int32)
        return cls(heads=answer.heads, layers=answer.layers, weights=_numbers(answer), keys=keys)


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
        top = len(entries[0].likeliest) if entries else 0
        likeliest = [*chain.from_iterable(entry.likeliest for entry in entries)]
        return cls(
            tokens=np.array([token.id for token in likeliest], np.int64).reshape(*shape, top),
            texts=_texts(token.text for token in likeliest).reshape(*shape, top),
            logprobs=np.array([token.logprob for token in likeliest], np.float64).reshape(*shape, top),
            next_logprob=np.array([entry.next_logprob for entry in entries], np.float64).reshape(shape),
            next_rank=np.array([entry.next_rank or NO_RANK for entry in entries], np.int64).reshape(shape),
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
            tokens=np.array([candidate.id for candidate in candidates], np.int64),
            texts=_texts(candidate.text for candidate in candidates),
            probabilities=np.array([candidate.probabilities for candidate in candidates], np.float64).reshape(
                len(candidates), len(stages)
            ),
            noise=np.array([candidate.noise for candidate in candidates], np.float64),
            drawn=answer.drawn,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The inside of the model while it reads a text and goes on with it."""

    tokens: list[InspectedToken]
    """Those of the prompt, and the generated ones: `id`, `text`, `special`, `generated`."""
    positions: Integers
    """[positions]: those that were looked at, ascending."""
    attention: Attention | None
    residual: Residual | None
    lens: Lens | None
    distributions: list[Distribution] | None
    """Of each position under each setting, then of the generated tokens."""

    @classmethod
    def of(cls, answer: InspectionAnswer) -> Self:
        """All that an answer tells."""
        shown = answer.distributions
        return cls(
            tokens=answer.tokens,
            positions=np.array(answer.positions, np.int64),
            attention=None if answer.attention is None else Attention.of(answer.attention),
            residual=None if answer.residual is None else Residual.of(answer.residual),
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
    return _array(numbers.data, numbers.shape, "<f2", np.float32)


def _array(data: list[Any] | str, shape: Sequence[int], encoded: str, listed: type[np.generic]) -> NDArray[Any]:
    """An array from base64 of elements of the type `encoded`, or from lists of those of the type `listed`."""
    if isinstance(data, str):
        return np.frombuffer(base64.b64decode(data), encoded).reshape(shape)
    return np.array(data, listed).reshape(shape)


def _texts(texts: Iterator[str]) -> Texts:
    """Texts of any length in an array."""
    return np.array([*texts], np.object_)
