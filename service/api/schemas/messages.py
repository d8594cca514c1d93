"""The objects that clients of Anthropic's messages send, as pydantic models; their parts are a chat request's."""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from service.api.schemas.body import Body, CacheControl
from service.api.schemas.chat import Effort, FunctionName, FunctionParameters
from service.api.schemas.grammars import JsonSchema
from service.api.schemas.types import Integer, Label, at_most, choose, supported

_HINT = "A hint that changes nothing."
_ECHOED = "As it came in an answer; it changes nothing."


class InputText(Body):
    """A piece of text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = Field(None, description=_HINT)
    citations: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="Always empty here.")
    parsed_output: Any = Field(None, description="As the anthropic package made it of the text; it changes nothing.")


Texts = Annotated[
    list[Annotated[InputText, supported("text")]],
    Field(min_length=1, fail_fast=True),
    at_most("max_parts", "parts"),
]
TextContent = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[Texts, Tag("<list>")], choose("a string or a list of text blocks")
]


class InputThinking(Body):
    """The model's reasoning in an earlier turn, for the chat template."""

    type: Literal["thinking"]
    thinking: str
    signature: str = Field("", max_length=65536, description="Not looked at.")
    cache_control: CacheControl | None = Field(None, description=_HINT)


class DirectCaller(Body):
    """The model itself as the caller of a tool."""

    type: Literal["direct"]


class InputToolUse(Body):
    """A call that the model made in an earlier turn."""

    type: Literal["tool_use"]
    id: Label
    name: FunctionName
    input: FunctionParameters
    caller: DirectCaller | None = Field(None, description=_ECHOED)
    cache_control: CacheControl | None = Field(None, description=_HINT)


class InputToolResult(Body):
    """The result of a call."""

    type: Literal["tool_result"]
    tool_use_id: Label
    content: TextContent | None = None
    is_error: bool = Field(False, description="The model is told of an error by the word Error before the content.")
    cache_control: CacheControl | None = Field(None, description=_HINT)


def _block_tag(value: Any) -> str | None:
    return f"<{value.get('type')}>" if isinstance(value, dict) else None


InputBlock = Annotated[
    Annotated[
        Annotated[InputText, Tag("<text>")]
        | Annotated[InputThinking, Tag("<thinking>")]
        | Annotated[InputToolUse, Tag("<tool_use>")]
        | Annotated[InputToolResult, Tag("<tool_result>")],
        Discriminator(_block_tag, custom_error_type="shape", custom_error_message="should be a block with a type"),
    ],
    supported("text", "thinking", "tool_use", "tool_result"),
]
Blocks = Annotated[list[InputBlock], Field(min_length=1, fail_fast=True), at_most("max_parts", "blocks")]

_ROLES = {"thinking": "assistant", "tool_use": "assistant", "tool_result": "user"}


class InputTurn(Body):
    """A turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[Blocks, Tag("<list>")], choose("a string or a list of blocks")
    ]

    @model_validator(mode="after")
    def _check_role(self) -> Self:
        """Refuse blocks that belong to another role."""
        for index, block in enumerate(self.content if isinstance(self.content, list) else ()):
            if _ROLES.get(block.type, self.role) != self.role:
                raise PydanticCustomError("field", "does not belong here", {"field": f"content[{index}].type"})
        return self


class MessageTool(Body):
    """A tool of the client; there are no server tools."""

    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: FunctionParameters = Field(description="JSON schema of its arguments.")
    strict: bool | None = Field(None, description="Whether no token is drawn that breaks the schema.")
    eager_input_streaming: bool | None = Field(None, description="Arguments are always streamed as they come.")
    cache_control: CacheControl | None = Field(None, description=_HINT)


class MessageToolChoice(Body):
    """The way in which tools are chosen."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = Field(None, description="With the type tool, and only with it.")
    disable_parallel_tool_use: bool = Field(False, description="The answer ends with its first call.")

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if (self.name is not None) != (self.type == "tool"):
            problem = "is required" if self.name is None else "goes with the type tool"
            raise PydanticCustomError("field", problem, {"field": "name"})
        return self


class Thinking(Body):
    """Wishes about the reasoning, for the chat template."""

    type: Literal["enabled", "disabled", "adaptive"] = Field(description="adaptive leaves it to the model.")
    budget_tokens: Integer | None = Field(None, ge=1, le=2**31 - 1)
    display: Literal["summarized"] | None = Field(None, description="Reasoning comes whole.")


class OutputFormat(Body):
    """The JSON schema that the text has to fit."""

    type: Literal["json_schema"]
    schema_: JsonSchema = Field(alias="schema")


class OutputConfig(Body):
    """Wishes about the text."""

    format: OutputFormat | None = None
    effort: Effort | None = Field(None, description="For the chat template, if it reads it, as reasoning_effort.")


class MessageMetadata(Body):
    """Labels of the client's own."""

    user_id: Label | None = Field(None, description="It changes nothing.")


_WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_EXAMPLES: Any = [
    {"max_tokens": 100, "messages": [{"role": "user", "content": "What is the capital of France?"}]},
    {
        "max_tokens": 100,
        "system": "Answer in one sentence.",
        "messages": [{"role": "user", "content": "What is the weather in Seoul?"}],
        "tools": [_WEATHER],
        "tool_choice": {"type": "auto"},
    },
]


class CountBody(Body):
    """A conversation in the form of Anthropic's Messages API, whose tokens are to be counted."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {name: value for name, value in example.items() if name != "max_tokens"} for example in _EXAMPLES
            ]
        }
    )

    model: str | None = Field(None, max_length=512, description="The served model's name, or nothing.")
    messages: Annotated[list[InputTurn], Field(min_length=1, fail_fast=True), at_most("max_messages", "messages")] = (
        Field(description="The turns; if the last one is the assistant's, the answer goes on with it.")
    )
    system: TextContent | None = Field(None, description="A system message before the others.")
    tools: Annotated[
        list[Annotated[MessageTool, supported("custom")]], Field(fail_fast=True), at_most("max_tools", "tools")
    ] = Field(default_factory=list, description="Tools that the model may call.")
    tool_choice: MessageToolChoice | None = Field(
        None, description="auto, the default, lets the model choose; with any or tool there has to be a call."
    )
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = Field(None, description=_HINT)


class MessagesBody(CountBody):
    """A request for the next message of a conversation in the form of Anthropic's Messages API."""

    model_config = ConfigDict(json_schema_extra={"examples": _EXAMPLES})

    max_tokens: Integer = Field(ge=1, le=2**31 - 1, description="Tokens to generate at most, reasoning included.")
    stop_sequences: Annotated[list[str], Field(fail_fast=True), at_most("max_stop", "strings")] = Field(
        default_factory=list, description="Strings that end the message and are left out of it."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="As in a chat request.")
    top_p: float | None = Field(None, gt=0, le=1, description="As in a chat request.")
    top_k: Integer | None = Field(None, ge=-1, le=2**31 - 1, description="As in a chat request.")
    stream: bool = Field(False, description="Answer with server-sent events.")
    speed: Literal["standard"] | None = Field(None, description="All requests have one speed.")
    metadata: MessageMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = Field(None, description="All requests have one tier.")
