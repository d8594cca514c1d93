"""Inspections in JSON, for every route that shows them."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.inspection import Distribution, Embedded, InspectionResult, PositionEncoding
from model.limits import ModelLimits
from model.token_logprobs import TokenLogprobs
from service.api.arrays import to_numpy
from service.api.attention import Attention, joined
from service.api.logprobs import finite
from service.api.schemas.inspect_options import InspectOptions
from service.api.schemas.inspection import (
    InspectedAttention,
    InspectedDistribution,
    InspectedEmbedding,
    InspectedEncoding,
    InspectedResidual,
    InspectedRotation,
    InspectedStage,
    LensEntry,
    ListedToken,
    Numbers,
    TokenInspection,
)
from service.generation import Piece
from service.text.interface import Tokenizer


def named_heads(options: InspectOptions, limits: ModelLimits) -> list[tuple[int, int]]:
    """The (layer, head) pairs that a request names."""
    if options.attention == "all":
        return [(layer, head) for layer in range(limits.layers) for head in range(limits.heads)]
    return [(layer, head) for layer, head in options.attention or ()]


class InspectionWriter:
    """Writes inspections in the form that a request asks for."""

    def __init__(self, options: InspectOptions, tokenizer: Tokenizer, limits: ModelLimits) -> None:
        self._options, self._tokenizer = options, tokenizer
        self._heads = named_heads(options, limits)
        self._known: dict[int, ListedToken] = {}
        """The tokens of lists so far; most are in several."""

    def text(self, token: int) -> str:
        """A token's text; bytes that are no characters are replaced."""
        return self._tokenizer.token_bytes(token).decode(errors="replace")

    def _listed(self, id: int) -> ListedToken:
        """A token of a list: its id and text, and its bytes where they are no whole characters."""
        known = self._known.get(id)
        if known is None:
            raw = self._tokenizer.token_bytes(id)
            known = ListedToken(id=id, text=raw.decode(errors="replace"))
            if known["text"].encode() != raw:
                known["bytes"] = [*raw]
            self._known[id] = known
        return known

    def token(self, id: int) -> dict[str, Any]:
        """A token's id, its text, and whether it is special, as the fields of `SpeltToken`."""
        return {"id": id, "text": self.text(id), "special": self._tokenizer.is_special(id)}

    def of_token(self, piece: Piece) -> TokenInspection | None:
        """The inspection of the place where a piece's token was drawn; None for a piece without a token."""
        if piece.token is None:
            return None
        inspection, shown = piece.inspection, piece.distributions[-1] if piece.distributions else None
        position = inspection.positions[-1] if inspection is not None else shown.position if shown is not None else None
        assert position is not None
        answer = TokenInspection(position=position, token=piece.token)
        if inspection is not None:
            self._add(answer, inspection)
        if shown is not None:
            answer.distribution = self.distribution(shown)
        return answer

    def _add(self, answer: TokenInspection, inspection: InspectionResult) -> None:
        """Add the numbers of the last position."""
        if inspection.attention is not None:
            answer.attention = self.attention(joined([inspection]).last())
        if inspection.stream is not None and inspection.added is not None:
            stream, added = (self.numbers(to_numpy(array)[:, -1]) for array in (inspection.stream, inspection.added))
            answer.residual = InspectedResidual(stream=stream, added=added)
        if inspection.lens is not None:
            answer.lens = [self.lens_entry(stage[-1], followed=True) for stage in inspection.lens]

    def attention(self, attention: Attention) -> InspectedAttention:
        """Weights whose first axis are the heads that the request names, or their layers if it reduces them."""
        numbers = self.numbers(attention.weights)
        answer = InspectedAttention(shape=numbers.shape, data=numbers.data)
        if self._options.reduction is None:
            answer.heads = self._heads
        else:
            answer.layers = [*dict.fromkeys(layer for layer, _ in self._heads)]
        if attention.keys is not None:
            answer.keys = self._indices(attention.keys)
        return answer

    def _indices(self, array: NDArray[np.int32]) -> NDArray[np.int32] | str:
        """Whole numbers, which float16 would not hold."""
        if self._options.encoding_format == "base64":
            return base64.b64encode(array.astype("<i4").tobytes()).decode()
        return array

    def numbers(self, array: NDArray[np.float32]) -> Numbers:
        """An array in the encoding that the request asks for."""
        shape = list(array.shape)
        if self._options.encoding_format == "base64":
            return Numbers(shape=shape, data=base64.b64encode(array.astype("<f2").tobytes()).decode())
        return Numbers(shape=shape, data=array)

    def embedding(self, parts: Sequence[Embedded]) -> InspectedEmbedding:
        """The embeddings at consecutive positions."""
        nearest = [
            [{**self._listed(id), "cosine": _short(cosine)} for id, cosine in near]
            for part in parts
            for near in part.nearest
        ]
        norms = self.numbers(np.concatenate([to_numpy(part.norms) for part in parts]))
        answer = InspectedEmbedding(norms=norms, nearest=nearest)
        if vectors := [to_numpy(part.vectors) for part in parts if part.vectors is not None]:
            answer.vectors = self.numbers(np.concatenate(vectors))
        return answer

    def encoding(self, parts: Sequence[PositionEncoding]) -> InspectedEncoding:
        """The encodings of consecutive positions."""
        answer, first = InspectedEncoding(), parts[0]
        if first.rotary:
            answer.rotary = [
                InspectedRotation(
                    layers=[*rotary[0].layers],
                    magnitude=_short(rotary[0].magnitude),
                    frequencies=[_short(frequency) for frequency in to_numpy(rotary[0].frequencies).tolist()],
                    angles=self.numbers(np.concatenate([to_numpy(part.angles) for part in rotary])),
                )
                for rotary in zip(*(part.rotary for part in parts), strict=True)
            ]
        if first.learned is not None:
            rows = [to_numpy(part.learned) for part in parts if part.learned is not None]
            answer.learned = self.numbers(np.concatenate(rows))
        if first.slopes is not None:
            answer.alibi_slopes = [_short(slope) for slope in to_numpy(first.slopes).tolist()]
        return answer

    def lens_entry(self, entry: TokenLogprobs, *, followed: bool) -> LensEntry:
        """The lens at one layer and position; `followed` says whether a token follows."""
        likeliest = zip(entry.top_tokens, entry.top_logprobs, strict=True)
        return LensEntry(
            likeliest=[{**self._listed(id), "logprob": finite(logprob)} for id, logprob in likeliest],
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
                {
                    **self._listed(token),
                    "probabilities": [_short(probability) for probability in probabilities],
                    "noise": None if noise is None else _short(noise),
                }
                for token, probabilities, noise in zip(shown.candidates, shown.probabilities, noises, strict=True)
            ],
            drawn=shown.drawn,
        )


def _short(number: float) -> float:
    """The number to the seven digits that it has."""
    return float(f"{number:.7g}")
