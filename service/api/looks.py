"""Looks inside the model in JSON, for every route that shows them."""

import base64

import numpy as np
from numpy.typing import NDArray

from model.contract import Distribution, Inside, ModelLimits, TokenLogprobs
from service.api.arrays import to_numpy
from service.api.logprobs import finite
from service.api.schemas.answers import (
    Candidate,
    InspectedAttention,
    InspectedDistribution,
    InspectedResidual,
    InspectedStage,
    LensEntry,
    LensToken,
    Numbers,
    TokenInspection,
)
from service.api.schemas.requests import Look
from service.generation import Piece
from service.text.interface import Tokenizer


def named_heads(look: Look, limits: ModelLimits) -> list[tuple[int, int]]:
    """The (layer, head) pairs that a request names."""
    if look.attention == "all":
        return [(layer, head) for layer in range(limits.layers) for head in range(limits.heads)]
    return [(layer, head) for layer, head in look.attention or ()]


class Looks:
    """Writes what is seen in the form that a request asks for."""

    def __init__(self, look: Look, tokenizer: Tokenizer, limits: ModelLimits) -> None:
        self._look, self._tokenizer = look, tokenizer
        self._heads = named_heads(look, limits)

    def text(self, token: int) -> str:
        """A token's text; bytes that are no characters are replaced."""
        return self._tokenizer.token_bytes(token).decode(errors="replace")

    def of_token(self, piece: Piece) -> TokenInspection | None:
        """The look at the place where a piece's token was drawn; None for a piece without a token."""
        if piece.token is None:
            return None
        inside, shown = piece.inside, piece.distributions[-1] if piece.distributions else None
        position = inside.positions[-1] if inside is not None else shown.position if shown is not None else None
        assert position is not None
        answer = TokenInspection(position=position, token=piece.token)
        if inside is not None:
            self._add(answer, inside)
        if shown is not None:
            answer.distribution = self.distribution(shown)
        return answer

    def _add(self, answer: TokenInspection, inside: Inside) -> None:
        """Add what is seen of the last position."""
        if inside.attention is not None:
            answer.attention = self.attention(to_numpy(inside.attention)[:, -1])
        if inside.stream is not None and inside.added is not None:
            stream, added = (self.numbers(to_numpy(array)[:, -1]) for array in (inside.stream, inside.added))
            answer.residual = InspectedResidual(stream=stream, added=added)
        if inside.lens is not None:
            answer.lens = [self.lens_entry(stage[-1], followed=True) for stage in inside.lens]

    def attention(self, maps: NDArray[np.float32]) -> InspectedAttention:
        """Weights whose first axis are the heads that the request names."""
        return InspectedAttention(heads=self._heads, **self.numbers(maps).model_dump())

    def numbers(self, array: NDArray[np.float32]) -> Numbers:
        """An array in the encoding that the request asks for."""
        shape = list(array.shape)
        if self._look.encoding_format == "base64":
            return Numbers(shape=shape, data=base64.b64encode(array.astype("<f2").tobytes()).decode())
        # Rounded to six digits behind the point, in 64 bits, so that the numbers are written as short as they are.
        return Numbers(shape=shape, data=array.astype(np.float64).round(6).tolist())

    def lens_entry(self, entry: TokenLogprobs, *, followed: bool) -> LensEntry:
        """The lens at one layer and position; `followed` says whether a token follows."""
        likeliest = zip(entry.top_tokens, entry.top_logprobs, strict=True)
        return LensEntry(
            likeliest=[LensToken(id=id, text=self.text(id), logprob=finite(logprob)) for id, logprob in likeliest],
            next_logprob=finite(entry.chosen) if followed else None,
            next_rank=entry.rank if followed else None,
        )

    def distribution(self, shown: Distribution, setting: int | None = None) -> InspectedDistribution:
        """A distribution; `setting` is the index of the setting that was tried."""
        noises = shown.noise if shown.noise is not None else [None] * len(shown.candidates)
        return InspectedDistribution(
            position=shown.position,
            setting=setting,
            stages=[
                InspectedStage(name=stage.name, kept=stage.kept, mass=_short(stage.mass), entropy=_short(stage.entropy))
                for stage in shown.stages
            ],
            candidates=[
                Candidate(
                    id=token,
                    text=self.text(token),
                    probabilities=[_short(probability) for probability in probabilities],
                    noise=None if noise is None else _short(noise),
                )
                for token, probabilities, noise in zip(shown.candidates, shown.probabilities, noises, strict=True)
            ],
            drawn=shown.drawn,
        )


def _short(number: float) -> float:
    """The number to the seven digits that it has."""
    return float(f"{number:.7g}")
