"""The body of a request to look inside the model while it reads a text."""

from typing import Annotated

from pydantic import ConfigDict, Field

from service.api.schemas.inspect_options import InspectOptions
from service.api.schemas.sampling import Sampling
from service.api.schemas.tokens import TokenizeBody
from service.api.schemas.types import Integer, Integers, TokenIds, at_most


class InspectBody(TokenizeBody, Sampling, InspectOptions):
    """A text or messages to look at inside the model, as it reads them and as it goes on."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "The capital of France is", "attention": [[3, 5]], "residual": True, "lens": 3}]
        }
    )

    tokens: TokenIds | None = Field(None, description="Token ids, in place of a prompt or messages.")
    positions: Annotated[Integers, at_most(2**16, "positions")] | None = Field(
        None, description="Positions of the prompt to look at, ascending; by default all."
    )
    embedding: Integer | None = Field(
        None,
        ge=0,
        description="Return the norm of each position's embedding, and this many tokens with the nearest embeddings.",
    )
    embedding_vectors: bool = Field(False, description="Return the embeddings themselves too; goes with embedding.")
    position_encoding: bool = Field(
        False, description="Return the rotary angles, the learned row or the ALiBi slopes that positions have."
    )
    details: bool = Field(False, description="Return the bytes of each token, and its place in the text.")
    spellings: bool = Field(
        False,
        description="Return the tokens of the prompt in other spellings: with a space before it and without, in lower "
        "and in upper case, with its letters and their marks composed and decomposed (NFC, NFD).",
    )
    max_tokens: Integer = Field(
        0, ge=0, le=2**31 - 1, description="Tokens to generate; their positions are looked at as well."
    )
    settings: Annotated[list[Sampling], Field(min_length=1, fail_fast=True), at_most(2**10, "settings")] | None = Field(
        None,
        description="Ways to draw, tried at the positions; what one leaves out is as in the request itself. "
        "Without them the request's own is tried, if no tokens are to be generated.",
    )
    temperature: float | None = Field(None, ge=0, le=2, description="As in a completion request, but 0 if missing.")
