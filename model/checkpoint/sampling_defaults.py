"""How a model's makers recommend to sample from it. What a request then asks for is not known here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from model.checkpoint.errors import CheckpointError, label


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """For requests that do not say; neutral where the makers recommend nothing."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


NEUTRAL = SamplingDefaults()


def read_sampling_defaults(values: Mapping[str, object], source: str) -> SamplingDefaults:
    """The defaults under the names that generation_config.json has for them. Raises CheckpointError naming `source`.

    A value that is absent or null is neutral.
    """

    def number(key: str, neutral: float, least: float, most: float) -> float:
        value = values.get(key)
        if value is None:
            return neutral
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise CheckpointError(f"{source}: {key} is {label(value)}, not a number from {least:g} to {most:g}")
        return value

    return SamplingDefaults(
        temperature=number("temperature", NEUTRAL.temperature, 0, 2),
        top_k=int(number("top_k", NEUTRAL.top_k, 0, 2**31 - 1)),
        top_p=number("top_p", NEUTRAL.top_p, math.ulp(0.0), 1),
        min_p=number("min_p", NEUTRAL.min_p, 0, 1),
    )
