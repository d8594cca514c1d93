"""The body of a chat request: a conversation, and the tools that the model may call."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from service.api.schemas.body import Body, CacheControl, CacheOptions
from service.api.schemas.generation import GenerationBody
from service.api.schemas.types import Integer, Label, at_most, choose
from service.text.tools.json_reader import MOST_NESTED, nests_within


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
