"""The objects that clients send: OpenAI's shapes and the common extensions to them, as pydantic models.

The types of a request's fields are checked here, and the ranges that any server would hold them to. Ranges that depend
on the model or on the settings are checked in `service.api.requests`. The lengths of lists and maps are an exception:
they are checked here, before the elements, of which only the first fault is reported. A known field that isn't declared
is refused here by name; `fields` decides about unknown ones.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from service.api.schemas.idle import ELSEWHERE, UNSUPPORTED, asks_for_nothing
from service.api.schemas.types import Integer, Integers, Label, TokenIds, at_most, choose
from service.text.tools.json_reader import MOST_NESTED, nests_within

_MOST_FIELDS = 256
"""Fields of one object at most, far more than any client has use for."""


class Body(BaseModel):
    """An object of a request. Null means a field's default; types are never converted.

    Unknown fields are kept as the model's extras; `fields` decides what becomes of them.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)
    elsewhere: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields of other routes, each with the values that ask for what happens anyway."""

    @model_validator(mode="before")
    @classmethod
    def _drop_idle(cls, data: Any) -> Any:
        """Leave out fields that ask for nothing: nulls, and unsupported fields that ask for what happens anyway.

        An unsupported field that asks for something ends the validation of the object, because it says more than the
        further faults that it causes.
        """
        if not isinstance(data, dict):
            return data
        if len(data) > _MOST_FIELDS:
            raise PydanticCustomError("too_many_fields", f"has more than {_MOST_FIELDS} fields")
        kept = {}
        for name, value in data.items():
            if name in cls.model_fields:
                if value is not None:
                    kept[name] = value
            elif name not in KNOWN:
                kept[name] = value
            elif not asks_for_nothing(value, UNSUPPORTED.get(name, cls.elsewhere.get(name, ()))):
                problem = "is not supported by this server" if name in UNSUPPORTED else "does not belong here"
                raise PydanticCustomError("unsupported", problem, {"field": name})
        return kept

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(core_schema) | {"additionalProperties": False}


Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(min_length=1, fail_fast=True), at_most("max_prompts", "prompts"), Tag("<list>")]
    | Annotated[TokenIds, Tag("<tokens>")]
    | Annotated[list[TokenIds], Field(fail_fast=True), at_most("max_prompts", "prompts"), Tag("<token lists>")],
    choose("a string, a list of strings, a list of token ids, or a list of such lists"),
]
Stop = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(fail_fast=True), at_most("max_stop", "strings"), Tag("<list>")],
    choose("a string or a list of strings"),
]


class StreamOptions(Body):
    """Extras of a stream beside the text."""

    include_usage: bool = Field(False, description="End the stream with a chunk of token counts and no choices.")
    continuous_usage_stats: bool = Field(False, description="Put the token counts so far in every chunk.")


class CacheOptions(Body):
    """The client's wish for a prompt's time in the cache; here the other requests decide about that."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Annotated[str, Field(max_length=16)] | None = None


class CacheControl(Body):
    """The end of a prompt's reusable beginning, as the client sees it; here every shared beginning is found anyway."""

    type: Literal["ephemeral"] | None = None
    ttl: Annotated[str, Field(max_length=16)] | None = None


_LABEL = "A label of the client's own; it changes nothing."
_IGNORED = "ignored, and named in the answer's X-Headlight-Ignored."


class Labels(Body):
    """A client's own labels, and hints. They change nothing in the answer."""

    user: Label | None = Field(None, description=_LABEL)
    safety_identifier: Label | None = Field(None, description=_LABEL)
    prompt_cache_key: Label | None = Field(None, description=f"{_LABEL} `cache_salt` separates prefix caches.")
    session_id: Label | None = Field(None, description=_LABEL)
    metadata: dict[Annotated[str, Field(max_length=64)], Label] | None = Field(
        None, max_length=16, description="Labels of the client's own; they change nothing."
    )
    store: bool | None = Field(None, description=f"Answers are never stored. True is {_IGNORED}")
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = Field(
        None, description=f"All requests have one tier. Any but auto and default is {_IGNORED}"
    )
    verbosity: Literal["low", "medium", "high"] | None = Field(
        None, description=f"The model decides. Any but medium is {_IGNORED}"
    )
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = Field(
        None, description=f"Cached prefixes stay until their memory is needed. 24h is {_IGNORED}"
    )
    prompt_cache_options: CacheOptions | None = Field(None, description=f"A caching hint, {_IGNORED}")


def _of_types(*types: type) -> BeforeValidator:
    """A check for a schema, or null."""

    def check(value: Any) -> Any:
        if value is not None and not isinstance(value, types):
            raise PydanticCustomError("shape", "should be a JSON schema, which is an object, true or false")
        return value

    return BeforeValidator(check)


JsonSchema = Annotated[Any, _of_types(dict, bool), WithJsonSchema({"type": ["object", "boolean"]})]
WrittenSchema = Annotated[Any, _of_types(dict, bool, str), WithJsonSchema({"type": ["object", "boolean", "string"]})]


class NamedSchema(Body):
    """A JSON schema that the completion has to fit."""

    name: Annotated[str, Field(min_length=1, max_length=64)] = Field(description="A label of the client's own.")
    description: Annotated[str, Field(max_length=4096)] | None = Field(None, description=_LABEL)
    schema_: JsonSchema = Field(None, alias="schema", description="Any JSON, if missing.")
    strict: bool | None = Field(None, description="The schema is enforced whatever this says.")


class ResponseFormat(Body):
    """OpenAI's way to ask for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = Field(None, description="With the type json_schema, and only with it.")


class StructuredOutputs(Body):
    """vLLM's way to ask for text of a form; exactly one of its fields says which."""

    json_: WrittenSchema = Field(None, alias="json", description="A JSON schema, as an object or as its text.")
    json_object: bool = Field(False, description="Any JSON object.")
    regex: str | None = Field(None, min_length=1, description="A regular expression that fits the whole completion.")
    choice: Annotated[list[str], Field(min_length=1, fail_fast=True), at_most("max_grammar", "texts")] | None = Field(
        None, description="The texts to choose from."
    )
    grammar: str | None = Field(None, min_length=1, description="A grammar in Lark's form, or in llama.cpp's GBNF.")


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
        None, ge=-(2**63), lt=2**63, description="Same seed, same completion; random if missing.", examples=[7]
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


HeadName = Annotated[Integers, Field(min_length=2, max_length=2)]


def _attention_shape(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<list>"


class Look(Body):
    """The things to look at inside the model, where tokens are read or drawn."""

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
    inspect: Look | None = Field(
        None, description="Look inside the model where it draws each token: told beside the token as `inspection`."
    )


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


TextList = Annotated[list[str], Field(min_length=1, fail_fast=True), at_most("max_prompts", "texts")]
Texts = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[TextList, Tag("<list>")], choose("a string or a list of strings")
]


class JudgementBody(Labels):
    """Fields of requests that let the model judge whether texts fit: how it is asked, and its two answers."""

    elsewhere = ELSEWHERE

    model: str | None = Field(None, max_length=512, description="The served model's name, or nothing.")
    instruction: str = Field(
        "Given a web search query, retrieve relevant passages that answer the query",
        description="What makes a document fit a query.",
    )
    system: str = Field(
        "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
        'Note that the answer can only be "yes" or "no".',
        description="The system message; with an empty one there is none.",
    )
    template: str = Field(
        "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
        description="The user's message, with {query} and {document}, and {instruction} if it is to be told.",
    )
    yes: Annotated[str, Field(min_length=1, max_length=64)] = Field("yes", description="The word for a fit, a token.")
    no: Annotated[str, Field(min_length=1, max_length=64)] = Field("no", description="The word for none, a token.")
    use_activation: bool = Field(
        True,
        description="Answer with the probability of yes beside no; otherwise with the difference of their logits.",
    )
    cache_salt: str | None = Field(
        None, min_length=1, max_length=256, description="Share cached prefixes only with requests of the same salt."
    )


class ScoreBody(JudgementBody):
    """A request to score pairs of texts: one with each of several, or equally many with each other."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"queries": "capital of France", "documents": ["Paris is the capital.", "Bread is baked."]},
                {"text_1": "capital of France", "text_2": "Paris is the capital of France."},
            ]
        }
    )

    text_1: Texts | None = Field(None, description="The queries, under their older name.")
    text_2: Texts | None = Field(None, description="The documents, under their older name.")
    queries: Texts | None = Field(None, description="One query, or as many as documents.")
    documents: Texts | None = Field(None, description="The documents.")


class Document(Body):
    """A document to rank, as an object."""

    text: str


class RerankBody(JudgementBody):
    """A request to order documents by how well they fit a query."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "query": "capital of France",
                    "documents": ["Bread is baked.", "Paris is the capital of France."],
                    "top_n": 1,
                }
            ]
        }
    )

    query: str
    documents: Annotated[
        list[
            Annotated[
                Annotated[str, Tag("<text>")] | Annotated[Document, Tag("<object>")],
                choose("a string or an object with a text"),
            ]
        ],
        Field(min_length=1, fail_fast=True),
        at_most("max_prompts", "documents"),
    ]
    top_n: Integer | None = Field(None, ge=0, description="Return this many of the best; all by default, and for 0.")
    return_documents: bool = Field(True, description="Return each document's text beside its score.")


class TextPart(Body):
    """A piece of a message."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = Field(None, description="A hint that changes nothing.")
    prompt_cache_breakpoint: CacheOptions | None = Field(None, description="A hint that changes nothing.")


Content = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[TextPart], Field(min_length=1, fail_fast=True), at_most("max_parts", "parts"), Tag("<list>")],
    choose("a string or a list of text parts"),
]


_PARSED = "What the openai package made of"

FunctionName = Annotated[str, Field(min_length=1, max_length=256)]


class FunctionCall(Body):
    """A function's name, and its arguments as the model wrote them."""

    name: FunctionName
    arguments: str = Field("", description="JSON, if the model wrote it so.")
    parsed_arguments: Any = Field(None, description=f"{_PARSED} the arguments. It changes nothing.")


class ToolCall(Body):
    """A call that the assistant made."""

    id: Label | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Integer | None = Field(None, description="Its place in the stream that it came in; it changes nothing.")


class Message(Body):
    """A turn of a conversation. Special tokens in its text are plain text to the model."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"] = Field(
        description="developer is another system, and function an older name of tool."
    )
    content: Content | None = Field(None, description="Null for nothing but an assistant's calls.")
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True), at_most("max_tools", "calls")] = Field(
        default_factory=list, description="The calls that the assistant made."
    )
    tool_call_id: Label | None = Field(None, description="The call that a tool's message is the result of.")
    reasoning_content: str | None = Field(None, description="The assistant's reasoning; for the chat template.")
    parsed: Any = Field(None, description=f"{_PARSED} the content. It changes nothing.")
    name: str | None = Field(None, min_length=1, max_length=256, description="Who speaks; for the chat template.")
    id: Label | None = Field(None, description="A label of the client's own; it changes nothing.")
    cache_control: CacheControl | None = Field(None, description="A hint that changes nothing.")

    @model_validator(mode="after")
    def _check_role(self) -> Self:
        """Refuse what belongs to messages of another role, and miss what this one's need."""
        for name, role in (("tool_calls", "assistant"), ("reasoning_content", "assistant"), ("tool_call_id", "tool")):
            if getattr(self, name) and self.role != role:
                raise PydanticCustomError("unsupported", "does not belong here", {"field": name})
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("field", "is required", {"field": "content"})
        if self.role == "function" and self.name is None:
            raise PydanticCustomError("field", "is required", {"field": "name"})
        return self


def _check_nesting(value: Any) -> Any:
    if not nests_within(value, MOST_NESTED):
        raise PydanticCustomError("nested", f"is nested more than {MOST_NESTED} deep")
    return value


FunctionParameters = Annotated[dict[str, Any], BeforeValidator(_check_nesting)]


class Function(Body):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: FunctionParameters | None = Field(None, description="JSON schema of its arguments.")
    strict: bool | None = Field(
        None, description="Whether the arguments have to fit the schema; tokens that would break it are not drawn."
    )


class Tool(Body):
    """A tool of the client; there are only functions."""

    type: Literal["function"]
    function: Function
    cache_control: CacheControl | None = Field(None, description="A hint that changes nothing.")


class NamedFunction(Body):
    """A function by its name."""

    name: FunctionName


class NamedTool(Body):
    """The tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


Tools = Annotated[list[Tool], Field(fail_fast=True), at_most("max_tools", "tools")]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")] | Annotated[NamedTool, Tag("<object>")],
    choose("'none', 'auto', 'required' or a function as an object"),
]

Effort = Annotated[str, Field(min_length=1, max_length=32)]


class TemplateVariables(Body):
    """Variables for chat templates beside the messages, under the names that templates use."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    clear_thinking: bool | None = None
    preserve_thinking: bool | None = None
    thinking_budget: Integer | None = Field(None, ge=-1, le=2**31 - 1)
    reasoning_effort: Effort | None = None
    model_identity: Label | None = None
    date_string: Annotated[str, Field(max_length=64)] | None = None


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True), at_most("max_messages", "messages")]


class ChatBody(GenerationBody):
    """A request for the next message of a conversation."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
                {
                    "messages": [{"role": "user", "content": "What is the weather in Seoul?"}],
                    "tools": [
                        {
                            "type": "function",
                            "function": {
                                "name": "get_weather",
                                "description": "The weather in a city.",
                                "parameters": {
                                    "type": "object",
                                    "properties": {"city": {"type": "string"}},
                                    "required": ["city"],
                                },
                            },
                        }
                    ],
                    "tool_choice": "auto",
                },
                {
                    "messages": [{"role": "user", "content": "Where and when was Ada Lovelace born?"}],
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {
                            "name": "birth",
                            "schema": {
                                "type": "object",
                                "properties": {"place": {"type": "string"}, "year": {"type": "integer"}},
                                "required": ["place", "year"],
                                "additionalProperties": False,
                            },
                        },
                    },
                },
            ]
        }
    )

    messages: Messages
    tools: Tools = Field(default_factory=list, description="Functions that the model may call.")
    tool_choice: ToolChoice | None = Field(
        None,
        description="auto, the default, lets the model choose; with none it is not told of the tools. With "
        "required, or a function that has to be called, no tokens are drawn but those of calls that fit their schemas.",
    )
    parallel_tool_calls: bool = Field(
        True, description="Whether there may be several calls; else the first one ends it."
    )
    separate_reasoning: bool = Field(
        True, description="Return a reasoning model's thoughts as reasoning_content, and not as a part of the content."
    )
    max_completion_tokens: Integer | None = Field(
        None, ge=1, le=2**31 - 1, description="Newer name of max_tokens; wins."
    )
    logprobs: bool = Field(False, description="Report the log-probability of each token.")
    top_logprobs: Integer | None = Field(
        None, ge=0, description="Report this many likeliest tokens as well; needs logprobs."
    )
    add_generation_prompt: bool | None = Field(
        None, description="Begin the assistant's turn; true, unless continue_final_message is."
    )
    continue_final_message: bool = Field(False, description="Go on with the last message instead of a new one.")
    reasoning_effort: Effort | None = Field(None, description="For the chat template, if it reads it.")
    chat_template_kwargs: TemplateVariables | None = Field(None, description="Variables for the chat template.")
    add_special_tokens: bool = Field(False, description="Begin as the model expects (BOS), before the template's text.")


class TokenizeBody(Body):
    """Text or messages to turn into token ids; exactly one of them."""

    model: str | None = Field(None, max_length=512)
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools = Field(default_factory=list, description="For messages, as in a chat request.")
    add_special_tokens: bool | None = Field(None, description="By default true for a prompt, false for messages.")
    add_generation_prompt: bool | None = Field(None, description="For messages; true by default.")
    continue_final_message: bool = Field(False, description="For messages, as in a chat request.")
    reasoning_effort: Effort | None = Field(None, description="For messages, as in a chat request.")
    chat_template_kwargs: TemplateVariables | None = Field(None, description="For messages, as in a chat request.")
    return_offsets: bool = Field(False, description="Return the place of each token, in characters.")


class InspectBody(TokenizeBody, Sampling, Look):
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


class DetokenizeBody(Body):
    """Token ids to turn into text."""

    model: str | None = Field(None, max_length=512)
    tokens: TokenIds


_OTHER_APIS = {
    *("include", "instructions", "max_output_tokens"),
    *("output_config", "stop_sequences", "system", "text"),
}
"""Fields of OpenAI's responses and of Anthropic's messages that chat requests don't have."""

KNOWN = frozenset({*UNSUPPORTED, *_OTHER_APIS, "reasoning_content", "tool_call_id", "tool_calls"}).union(
    *(
        body.model_fields.keys() - Labels.model_fields.keys()
        for body in (
            *(
                CompletionBody,
                ChatBody,
                EmbeddingBody,
                ScoreBody,
                RerankBody,
                InspectBody,
                TokenizeBody,
                DetokenizeBody,
                StreamOptions,
                TemplateVariables,
            ),
            *(ResponseFormat, StructuredOutputs),
        )
    )
)
"""Names that mean something to this server or to similar ones; where they are out of place, they are refused."""
