"""The body of a request for embeddings."""

from typing import Literal

from pydantic import ConfigDict, Field

from service.api.schemas.body import Labels
from service.api.schemas.idle import ELSEWHERE
from service.api.schemas.types import Integer, Prompt


class EmbeddingBody(Labels):
    """A request for the embeddings of one or several texts: pooled hidden rows of the model's last layer."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": ["The capital of France", "A recipe"]}]})
    elsewhere = ELSEWHERE

    model: str | None = Field(None, max_length=512, description="The served model's name, or nothing.")
    input: Prompt = Field(description="Text, whose special tokens are honoured, or token ids; one or several.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="Numbers, or little-endian float32 in base64."
    )
    dimensions: Integer | None = Field(None, ge=1, description="Keep this many leading numbers of each embedding.")
    pooling: Literal["mean", "last", "first"] = Field("mean", description="The hidden rows that make up an embedding.")
    normalize: bool = Field(True, description="Scale each embedding to length 1, after its dimensions are cut.")
    add_special_tokens: bool = Field(True, description="Begin a text as the model expects (BOS).")
    cache_salt: str | None = Field(
        None, min_length=1, max_length=256, description="Share cached prefixes only with requests of the same salt."
    )
