"""The fields of a request that say what to look at inside the model."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from service.api.schemas.body import Body
from service.api.schemas.types import Integer, Integers, at_most

HeadName = Annotated[Integers, Field(min_length=2, max_length=2)]


def _attention_shape(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<list>"


class InspectOptions(Body):
    """The parts of the model to look at, where tokens are read or drawn."""

    attention: (
        Annotated[
            Annotated[Literal["all"], Tag("<text>")]
            | Annotated[Annotated[list[HeadName], Field(fail_fast=True), at_most(2**14, "heads")], Tag("<list>")],
            Discriminator(_attention_shape),
        ]
        | None
    ) = Field(None, description='Heads whose attention weights to return, as pairs of layer and head; or "all".')
    reduction: Literal["mean", "max", "rollout"] | None = Field(
        None,
        description="One map for each layer, instead of one for each head: the mean or the maximum over the named "
        "heads, or, in /v1/inspect, the rollout of all heads (Abnar and Zuidema, 2020).",
    )
    top_keys: Integer | None = Field(
        None, ge=1, le=2**16, description="Return only this many heaviest keys of each row of attention weights."
    )
    residual: bool = Field(
        False, description="Return the norms of the residual stream, and of what attention and MLP add to it."
    )
    lens: Integer | None = Field(
        None, ge=0, description="Return this many likeliest tokens that the stream after each layer would give."
    )
    distribution: Integer | None = Field(
        None,
        ge=0,
        description="Return the distributions that tokens are drawn from, stage by stage, with this many likeliest "
        "tokens of the first and the last stage.",
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="Nested lists of numbers, or little-endian float16 in base64."
    )
