"""The objects that clients of OpenAI's responses send, as pydantic models. Their parts are those of a chat request."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from service.api.schemas.body import Body, CacheControl, CacheOptions, Labels
from service.api.schemas.chat import Effort, FunctionName, FunctionParameters, TemplateVariables
from service.api.schemas.grammars import JsonSchema
from service.api.schemas.types import Integer, Label, at_most, choose, supported

_NOTHING = "A label of the client's own; it changes nothing."
Status = Literal["in_progress", "completed", "incomplete"]


class ResponseTextPart(Body):
    """A piece of text: the client's (input_text), or the model's from an earlier turn (output_text)."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="Always empty here.")
    logprobs: list[Any] | None = Field(None, description="As it came in an answer; it changes nothing.")
    parsed: Any = Field(None, description="As the openai package made it of the text; it changes nothing.")
    prompt_cache_breakpoint: CacheOptions | None = Field(None, description="A hint that changes nothing.")


Parts = Annotated[
    list[Annotated[ResponseTextPart, supported("input_text", "output_text", "text")]],
    Field(fail_fast=True),
    at_most("max_parts", "parts"),
]
ResponseContent = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[Parts, Tag("<list>")], choose("a string or a list of text parts")
]


class InputMessage(Body):
    """A message of an earlier turn, or the newest."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: ResponseContent
    id: Label | None = Field(None, description=_NOTHING)
    status: Status | None = Field(None, description="As it came in an answer; it changes nothing.")
    phase: Literal["commentary", "final_answer"] | None = Field(None, description=_NOTHING)


class InputCall(Body):
    """A call that the model made in an earlier turn."""

    type: Literal["function_call"]
    call_id: Label
    name: FunctionName
    arguments: str = Field(description="JSON, if the model wrote it so.")
    id: Label | None = Field(None, description=_NOTHING)
    status: Status | None = Field(None, description="As it came in an answer; it changes nothing.")
    parsed_arguments: Any = Field(None, description="As the openai package made it; it changes nothing.")


class InputCallOutput(Body):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: Label
    output: ResponseContent
    id: Label | None = Field(None, description=_NOTHING)
    status: Status | None = Field(None, description=_NOTHING)


class ReasoningText(Body):
    """A piece of reasoning, or of a summary of it."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


ReasoningTexts = Annotated[list[ReasoningText], Field(fail_fast=True), at_most("max_parts", "parts")]


class InputReasoning(Body):
    """The model's reasoning in an earlier turn, for the chat template."""

    type: Literal["reasoning"]
    content: ReasoningTexts | None = None
    summary: ReasoningTexts | None = Field(None, description="Stands for the content, if that is missing.")
    encrypted_content: Literal[""] | None = Field(None, description="Not supported: nobody here could read it.")
    id: Label | None = Field(None, description=_NOTHING)
    status: Status | None = Field(None, description=_NOTHING)


def _item_tag(value: Any) -> str | None:
    """The tag of an item, from its type; a message may lack one."""
    return f"<{value.get('type') or 'message'}>" if isinstance(value, dict) else None


InputItem = Annotated[
    Annotated[
        Annotated[InputMessage, Tag("<message>")]
        | Annotated[InputCall, Tag("<function_call>")]
        | Annotated[InputCallOutput, Tag("<function_call_output>")]
        | Annotated[InputReasoning, Tag("<reasoning>")],
        Discriminator(_item_tag, custom_error_type="shape", custom_error_message="should be an item, as an object"),
    ],
    supported("message", "function_call", "function_call_output", "reasoning"),
]
Input = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[InputItem], Field(min_length=1, fail_fast=True), at_most("max_messages", "items"), Tag("<list>")],
    choose("a string or a list of items"),
]


class ResponseTool(Body):
    """A function of the client; there are no hosted tools."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: FunctionParameters | None = Field(None, description="JSON schema of its arguments.")
    strict: bool | None = Field(None, description="As in a chat request.")
    cache_control: CacheControl | None = Field(None, description="A hint that changes nothing.")


class ChosenFunction(Body):
    """The function that has to be called."""

    type: Literal["function"]
    name: FunctionName


ResponseTools = Annotated[
    list[Annotated[ResponseTool, supported("function")]], Field(fail_fast=True), at_most("max_tools", "tools")
]
ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")]
    | Annotated[ChosenFunction, supported("function"), Tag("<object>")],
    choose("'none', 'auto', 'required' or a function as an object"),
]


class TextFormat(Body):
    """The form of the text."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(None, description=_NOTHING)
    description: Annotated[str, Field(max_length=4096)] | None = Field(None, description=_NOTHING)
    schema_: JsonSchema = Field(None, alias="schema", description="With the type json_schema, and only with it.")
    strict: bool | None = Field(None, description="The schema is enforced whatever this says.")

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.schema_ is not None) != (self.type == "json_schema"):
            problem = "is required" if self.schema_ is None else "goes with the type json_schema"
            raise PydanticCustomError("field", problem, {"field": "schema"})
        return self


class TextOptions(Body):
    """Wishes about the text."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="The model decides; a hint.")


class ReasoningOptions(Body):
    """Wishes about the reasoning."""

    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None
    effort: Effort | None = Field(None, description="For the chat template, if it reads it.")
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="A hint: the reasoning comes whole, without a summary."
    )
    generate_summary: Literal["auto", "concise", "detailed"] | None = Field(None, description="An older summary.")


class ResponseStreamOptions(Body):
    """Extras of a stream; those that OpenAI has are not supported, unless they ask for nothing."""


Included = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]

_WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class ResponsesBody(Labels):
    """A request for a response in the form of OpenAI's Responses API. Earlier turns come with the request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "What is the capital of France?", "instructions": "Answer in one sentence."},
                {
                    "input": [
                        {"role": "user", "content": "What is the weather in Seoul?"},
                        {
                            "type": "function_call",
                            "call_id": "call_1",
                            "name": "get_weather",
                            "arguments": '{"city": "Seoul"}',
                        },
                        {"type": "function_call_output", "call_id": "call_1", "output": "Rain, 12 degrees."},
                    ],
                    "tools": [_WEATHER],
                },
            ]
        }
    )
    elsewhere: ClassVar[dict[str, tuple[Any, ...]]] = {"stop": ([],)}

    model: str | None = Field(None, max_length=512, description="The served model's name, or nothing.")
    input: Input = Field(description="A text of the user, or the turns of the conversation; text only.")
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: Integer | None = Field(
        None, ge=1, le=2**31 - 1, description="Tokens to generate at most, reasoning included."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="As in a chat request.")
    top_p: float | None = Field(None, gt=0, le=1, description="As in a chat request.")
    top_k: Integer | None = Field(None, ge=-1, le=2**31 - 1, description="As in a chat request.")
    seed: Integer | None = Field(None, ge=-(2**63), lt=2**63, description="As in a chat request.")
    stream: bool = Field(False, description="Answer with server-sent events.")
    stream_options: ResponseStreamOptions | None = Field(None, description="Only with stream.")
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: ResponseTools = Field(default_factory=list, description="Functions that the model may call.")
    tool_choice: ResponseToolChoice | None = Field(None, description="As in a chat request.")
    parallel_tool_calls: bool = Field(True, description="As in a chat request.")
    include: Annotated[list[Included], Field(fail_fast=True, max_length=16)] = Field(
        default_factory=list,
        description="message.output_text.logprobs: log-probabilities. reasoning.encrypted_content is a hint: reasoning "
        "comes as text.",
    )
    top_logprobs: Integer = Field(0, ge=0, description="Report this many likeliest tokens beside each token.")
    chat_template_kwargs: TemplateVariables | None = Field(None, description="As in a chat request.")
    cache_salt: str | None = Field(None, min_length=1, max_length=256, description="As in a chat request.")
