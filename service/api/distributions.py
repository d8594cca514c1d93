"""Distributions in JSON, for every route that shows them."""

from model.contract import Distribution
from service.api.schemas.answers import Candidate, InspectedDistribution, InspectedStage
from service.text.interface import Tokenizer


def inspected(tokenizer: Tokenizer, shown: Distribution, setting: int | None = None) -> InspectedDistribution:
    """A distribution as clients get it; `setting` is the index of the setting that was tried."""
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
                text=tokenizer.token_bytes(token).decode(errors="replace"),
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
