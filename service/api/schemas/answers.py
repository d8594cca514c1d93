"""The objects that clients get: OpenAI's shapes and the common extensions to them, as pydantic models.

A field without a default is always sent, and one with a default only if it was set.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas.inspection import TokenInspection


class ErrorDetail(BaseModel):
    """An error for a person (message) and for a program (the other fields)."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The form of every error."""

    error: ErrorDetail


class PromptTokensDetails(BaseModel):
    """The origin of the prompt's tokens."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts over all the choices of a request; a prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


Finish = Literal["stop", "length"]
ChatFinish = Literal["stop", "length", "tool_calls"]


class CompletionLogprobs(BaseModel):
    """Parallel lists with an entry for each token; a token that is not whole characters is named by its bytes."""

    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="Null for the first token of an echoed prompt.")
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(BaseModel):
    """A token in its place in the prompt."""

    logprob: float
    rank: int = Field(description="Number of tokens that are likelier in this place, plus 1.")
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""For each prompt token, itself and the likeliest ones by token id; null for the first."""


class CompletionChoice(BaseModel):
    """A completion, or a stream's next piece of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    inspection: TokenInspection | list[TokenInspection] | None = Field(
        None, description="In a stream one, else a list."
    )


class Completion(BaseModel):
    """The answer to a completion request, and each chunk of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(BaseModel):
    """A token, its UTF-8 bytes, and its natural log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer, with the likeliest tokens in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities, one entry for each token."""

    content: list[TokenLogprob]


class CalledFunction(BaseModel):
    """A function that the model calls."""

    name: str
    arguments: str = Field(description="JSON, unless the model wrote something else, or its text was cut off.")


class MessageToolCall(BaseModel):
    """A call that the client is asked to make."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(BaseModel):
    """The model's message."""

    role: Literal["assistant"]
    content: str | None = Field(description="Null if there is nothing but calls.")
    reasoning_content: str | None = Field(None, description="The model's reasoning, if there is any.")
    refusal: None = Field(description="This server's models refuse in their text, if at all.")
    tool_calls: list[MessageToolCall] | None = Field(None, description="The calls, if there are any.")


class ChatChoice(BaseModel):
    """One of the answers to a chat request."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinish
    token_ids: list[int] | None = None
    inspection: list[TokenInspection] | None = None


class ChatCompletion(BaseModel):
    """The answer to a chat request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class FunctionDelta(BaseModel):
    """The addition of a chunk to a call: the whole name, in its first chunk only, and the next piece of arguments."""

    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    """The addition of a chunk to the call of this index; the id is in its first chunk only."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(BaseModel):
    """The addition of a chunk to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    """A stream's next piece of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinish | None
    token_ids: list[int] | None = None
    inspection: TokenInspection | None = None


class ChatChunk(BaseModel):
    """A chunk of a chat stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Embedding(BaseModel):
    """The embedding of one input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Token counts over all inputs."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """The answer to an embedding request."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class Score(BaseModel):
    """How well a pair of texts fits."""

    index: int
    object: Literal["score"]
    score: float


class Scores(BaseModel):
    """The answer to a request to score pairs, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: EmbeddingUsage


class RankedDocument(BaseModel):
    """A document's text."""

    text: str


class Ranked(BaseModel):
    """A document's place in the request, and how well it fits the query."""

    index: int
    document: RankedDocument | None = None
    relevance_score: float


class Ranking(BaseModel):
    """The answer to a request to order documents, the best first."""

    id: str
    model: str
    results: list[Ranked]
    usage: EmbeddingUsage


class ParameterCounts(BaseModel):
    """The parameters of a model by the step that uses them, norms included; those of all layers together."""

    embedding: int = Field(description="Of the embedding's table, and of learned positions.")
    attention: int
    feed_forward: int
    head: int = Field(description="Of the output projection, unless it is the embedding's table, and of the last norm.")
    total: int


class CardSize(BaseModel):
    """The size of a model."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int = Field(description="Of queries, in each layer.")
    kv_heads: int
    head_dim: int
    mlp_size: int
    parameters: ParameterCounts
    weight_bytes: int = Field(description="Memory of the weights, which may be quantised.")


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "headlight"
    max_model_len: int | None = Field(description="Tokens of a prompt and its completion; null while loading.")
    size: CardSize | None = Field(description="Null while loading.")


class ModelList(BaseModel):
    """The names that the model is served under."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Tokens(BaseModel):
    """The token ids of a text."""

    tokens: list[int]
    count: int
    max_model_len: int | None = Field(description="Tokens of a prompt and its completion; null while the model loads.")
    offsets: list[tuple[int, int]] | None = Field(
        None,
        description="The place of each token, [start, end) in characters: in the prompt, or for messages in the text "
        "that /detokenize gives. Each begins where the one before it ended, and a character of several tokens is in "
        "the last of them.",
    )


class TokenizerInfo(BaseModel):
    """The tokenizer, described under the names of tokenizer_config.json.

    Further named tokens, as unk_token, come under their own names.
    """

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "bos_token": "<|im_start|>",
                    "eos_token": "<|im_end|>",
                    "pad_token": None,
                    "additional_special_tokens": ["<|endoftext|>", "<|im_end|>", "<|im_start|>"],
                    "chat_template": "{% for message in messages %}...",
                    "model_max_length": 8192,
                    "vocab_size": 49152,
                }
            ]
        },
    )

    tokenizer_class: str
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    additional_special_tokens: list[str]
    """All special tokens, in the order of their texts."""
    chat_template: str | None
    model_max_length: int | None
    """Tokens of a prompt and its completion together; null until the model is loaded."""
    vocab_size: int
    """One more than the highest id that has a text."""


class Text(BaseModel):
    """The text of token ids, special tokens included."""

    prompt: str


class Version(BaseModel):
    """The version of the server."""

    version: str


class Health(BaseModel):
    """The engine's state, and a line on what is wrong."""

    status: Literal["ok", "loading", "ready", "draining", "unavailable"]
    reason: str = ""
