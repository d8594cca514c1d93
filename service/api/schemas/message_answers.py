"""The objects that clients of Anthropic's messages get, as pydantic models.

A field without a default is always sent, and one with a default only if it was set.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageErrorDetail(BaseModel):
    """An error for a person (message) and for a program (type)."""

    type: str
    message: str


class MessageError(BaseModel):
    """The form of every error of these routes."""

    type: Literal["error"]
    error: MessageErrorDetail


class TextBlock(BaseModel):
    """Text of the model."""

    type: Literal["text"]
    text: str


class ThinkingBlock(BaseModel):
    """The model's reasoning."""

    type: Literal["thinking"]
    thinking: str
    signature: str = Field(description="Always empty: reasoning comes back as text, and nothing signs it.")


class ToolUseBlock(BaseModel):
    """A call that the client is asked to make."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any] = Field(
        description='The arguments; {"INVALID_JSON": text} if the model\'s text is no JSON object, or was cut off.'
    )


Block = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(BaseModel):
    """Token counts; the prompt's tokens are `input_tokens` and `cache_read_input_tokens` together."""

    input_tokens: int
    cache_creation_input_tokens: int = Field(description="Always 0: the cache is filled by itself.")
    cache_read_input_tokens: int
    output_tokens: int


class MessageAnswer(BaseModel):
    """The model's message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: str | None = Field(description="The stop sequence that ended the message, if one did.")
    usage: MessageUsage


class MessageStart(BaseModel):
    """The first event of a stream: a message without content."""

    type: Literal["message_start"]
    message: MessageAnswer


class BlockStart(BaseModel):
    """The event that begins a block of content."""

    type: Literal["content_block_start"]
    index: int
    content_block: Block


class TextDelta(BaseModel):
    """An addition to a text."""

    type: Literal["text_delta"]
    text: str


class ThinkingDelta(BaseModel):
    """An addition to the reasoning."""

    type: Literal["thinking_delta"]
    thinking: str


class InputDelta(BaseModel):
    """An addition to the JSON text of a call's arguments."""

    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(BaseModel):
    """The event that adds to a block of content."""

    type: Literal["content_block_delta"]
    index: int
    delta: TextDelta | ThinkingDelta | InputDelta


class BlockStop(BaseModel):
    """The event that ends a block of content."""

    type: Literal["content_block_stop"]
    index: int


class MessageEnding(BaseModel):
    """The reason why a message ended."""

    stop_reason: StopReason | None
    stop_sequence: str | None


class MessageEnd(BaseModel):
    """The event with a message's ending and its final counts."""

    type: Literal["message_delta"]
    delta: MessageEnding
    usage: MessageUsage


class MessageStop(BaseModel):
    """The last event of a stream."""

    type: Literal["message_stop"]


class TokenCount(BaseModel):
    """The number of tokens that a request's prompt has."""

    input_tokens: int
