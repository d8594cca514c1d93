"""The fields of a request that say how a token is drawn."""

from typing import Annotated

from pydantic import Field

from service.api.schemas.body import Body
from service.api.schemas.types import Integer, at_most


class Sampling(Body):
    """The fields that say how a token is drawn."""

    temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        description="0 chooses the likeliest token; below 1e-5 counts as 0. The default of this field and of the three "
        "below is what the model's makers recommend, if anything.",
        examples=[0.7],
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Draw from the likeliest tokens that hold this much probability.", examples=[0.95]
    )
    top_k: Integer | None = Field(
        None, ge=-1, le=2**31 - 1, description="Draw from the k likeliest tokens; 0 or -1 for all.", examples=[40]
    )
    typical_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Draw from the tokens nearest to the expected surprise, of this much probability.",
        examples=[0.9],
    )
    top_n_sigma: float = Field(
        0.0,
        ge=-1,
        le=100,
        description="Draw from the tokens whose logits are at most this many standard deviations below the highest, "
        "before typical_p; 0 or below for all.",
        examples=[1.5],
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Leave out tokens below this share of the likeliest one's.", examples=[0.05]
    )
    seed: Integer | None = Field(
        None, ge=-(2**63), lt=2**63, description="Same seed, same completion; random if missing or -1.", examples=[7]
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Subtracted from the logit of every token generated so far.", examples=[0.5]
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="Subtracted from a token's logit for each time it was generated.", examples=[0.5]
    )
    repetition_penalty: float | None = Field(
        None,
        ge=0.01,
        le=100,
        description="Divides logits of tokens in prompt or output. Its default is as temperature's.",
        examples=[1.1],
    )
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], at_most("max_logit_bias", "entries")] = (
        Field(
            default_factory=dict,
            description="Added to the logits of these token ids, which are written as strings.",
            examples=[{"50": -100}],
        )
    )
