"""The body of a request to continue texts."""

from pydantic import ConfigDict, Field

from service.api.schemas.generation import GenerationBody
from service.api.schemas.types import Integer, Prompt


class CompletionBody(GenerationBody):
    """A request to continue one or several texts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0},
                {"prompt": "The capital of France is ", "structured_outputs": {"choice": ["Paris", "Rome"]}},
                {"prompt": "The capital of France is", "max_tokens": 8, "use_beam_search": True, "n": 2, "best_of": 4},
            ]
        }
    )

    prompt: Prompt = Field(description="Text, whose special tokens are honoured, or token ids; one or several.")
    max_tokens: Integer | None = Field(
        None, ge=0, le=2**31 - 1, description="Tokens to generate at most; 0 only with echo or prompt_logprobs."
    )
    logprobs: Integer | None = Field(None, ge=0, description="Report this many likeliest tokens beside each token.")
    best_of: Integer | None = Field(
        None,
        ge=1,
        description="Draw this many completions for each prompt, and answer with the n of the highest mean "
        "log-probability of a token, the best first; not with stream. By default n, in the order of their seeds.",
        examples=[4],
    )
    echo: bool = Field(
        False, description="Put the prompt before the completion; with logprobs, its log-probabilities as well."
    )
    add_special_tokens: bool = Field(True, description="Begin a text prompt as the model expects (BOS).")
