"""The objects that clients of OpenAI's responses get, as pydantic models.

A field without a default is always sent, and one with a default only if it was set.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.api.schemas.answers import TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(BaseModel):
    """Text of the model."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(description="Always empty.")
    logprobs: list[TokenLogprob]


class OutputReasoningText(BaseModel):
    """Reasoning of the model."""

    type: Literal["reasoning_text"]
    text: str


class OutputMessage(BaseModel):
    """A message of the model."""

    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


class OutputReasoning(BaseModel):
    """The model's reasoning before its message."""

    type: Literal["reasoning"]
    id: str
    status: ItemStatus
    summary: list[Any] = Field(description="Always empty: the reasoning comes whole, as content.")
    content: list[OutputReasoningText]


class OutputCall(BaseModel):
    """A call that the client is asked to make."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str = Field(description="JSON, unless the model wrote something else, or its text was cut off.")
    status: ItemStatus


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputTokensDetails(BaseModel):
    """The origin of the input's tokens."""

    cached_tokens: int
    cache_write_tokens: int = Field(description="Always 0: the cache is filled by itself.")


class OutputTokensDetails(BaseModel):
    """The use of the output's tokens."""

    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(BaseModel):
    """The reason why a response was cut off."""

    reason: Literal["max_output_tokens"]


class ResponseAnswer(BaseModel):
    """A response, with the settings that it was made with."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    background: Literal[False]
    completed_at: int | None
    error: None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, Any]
    service_tier: Literal["default"]
    store: Literal[False] = Field(description="Responses are never stored.")
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None


class ResponseEvent(BaseModel):
    """An event of a stream; its other fields depend on its type, as OpenAI documents them."""

    type: str
    sequence_number: int = Field(description="0 for the first event of a stream, then one more for each.")
