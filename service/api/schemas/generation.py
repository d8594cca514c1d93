"""The fields that both completion routes have: OpenAI's, and the common extensions to them."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from service.api.schemas.body import Body, Labels
from service.api.schemas.grammars import ResponseFormat, StructuredOutputs
from service.api.schemas.idle import ELSEWHERE
from service.api.schemas.inspect_options import InspectOptions
from service.api.schemas.sampling import Sampling
from service.api.schemas.types import Integer, Integers, TokenIds, at_most, choose

Stop = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(fail_fast=True), at_most("max_stop", "strings"), Tag("<list>")],
    choose("a string or a list of strings"),
]


class StreamOptions(Body):
    """Extras of a stream beside the text."""

    include_usage: bool = Field(False, description="End the stream with a chunk of token counts and no choices.")
    continuous_usage_stats: bool = Field(False, description="Put the token counts so far in every chunk.")


def _flag_or_text(value: Any) -> str:
    return "<flag>" if isinstance(value, bool) else "<text>"


class GenerationBody(Labels, Sampling):
    """Fields of both completion routes."""

    elsewhere = ELSEWHERE

    model: str | None = Field(None, max_length=512, description="The served model's name, or nothing.")
    n: Integer = Field(
        1,
        ge=1,
        description="Completions for each prompt. Several are drawn with temperature 1, unless the request gives one, "
        "where the model's makers recommend the likeliest token.",
        examples=[2],
    )
    max_tokens: Integer | None = Field(None, ge=1, le=2**31 - 1, description="Tokens to generate at most.")
    min_tokens: Integer = Field(
        0,
        ge=0,
        le=2**31 - 1,
        description="Tokens before which no stop token is drawn and no stop string is looked for.",
        examples=[2],
    )
    use_beam_search: bool = Field(
        False,
        description="Search for the n likeliest completions with n beams (with best_of as many), instead of drawing. "
        "Fields that change what is drawn, and stream, do not go with it.",
        examples=[True],
    )
    length_penalty: float = Field(
        1.0,
        ge=-10,
        le=10,
        description="A search ranks a completion of n tokens by its log-probability, divided by n to this power.",
        examples=[0.8],
    )
    early_stopping: Annotated[
        Annotated[bool, Tag("<flag>")] | Annotated[Literal["never"], Tag("<text>")],
        Discriminator(
            _flag_or_text, custom_error_type="shape", custom_error_message="should be true, false or 'never'"
        ),
    ] = Field(
        False,
        description="True ends a search with as many completions as it has beams, false when the likeliest beam ranks "
        "below those, never when it would do so at any length.",
        examples=[True],
    )
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = Field(
        None, description="Draw from these tokens alone.", examples=[[50, 97]]
    )
    bad_words: Annotated[list[str], Field(fail_fast=True), at_most("max_bad_words", "strings")] = Field(
        default_factory=list,
        description="Words that are not generated: the last token of one is not drawn behind its others, as the word "
        "is tokenised at the beginning of a text or behind a space.",
        examples=[["Paris", "New York"]],
    )
    stop: Stop | None = Field(
        None,
        description="Strings that end the completion and are left out of it. Special tokens in them are found even "
        "where the text leaves such tokens out.",
    )
    stop_token_ids: Annotated[Integers, at_most("max_stop_token_ids", "ids")] = Field(
        default_factory=list, description="Tokens that end the completion."
    )
    ignore_eos: bool = Field(False, description="Go on when the model says that it is finished.")
    include_stop_str_in_output: bool = Field(False, description="Leave what ended the completion in its text.")
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of the text.")
    stream: bool = Field(False, description="Answer with server-sent events, a token at a time.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    prompt_logprobs: Integer | None = Field(
        None,
        ge=0,
        description="Report the log-probability and rank of each prompt token, and this many likeliest tokens beside.",
    )
    return_token_ids: bool = Field(False, description="Also return the ids of the prompt's and completion's tokens.")
    response_format: ResponseFormat | None = Field(
        None,
        description="The completion is JSON, and fits a schema if one is given. Tokens that would break it are not "
        "drawn. It is whole also when max_tokens run out, if they suffice for any such text that is found.",
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="As response_format, with more forms: a regular expression, a choice, a grammar."
    )
    cache_salt: str | None = Field(
        None, min_length=1, max_length=256, description="Share cached prefixes only with requests of the same salt."
    )
    inspect: InspectOptions | None = Field(
        None, description="Look inside the model where it draws each token: told beside the token as `inspection`."
    )
