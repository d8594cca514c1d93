"""The bodies of requests to turn texts into token ids, and ids into text."""

from pydantic import ConfigDict, Field

from service.api.schemas.body import Body
from service.api.schemas.chat import Effort, Messages, TemplateVariables, Tools
from service.api.schemas.types import TokenIds


class TokenizeBody(Body):
    """Text or messages to turn into token ids; exactly one of them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "The capital of France is", "return_offsets": True},
                {"messages": [{"role": "user", "content": "Hi!"}]},
            ]
        }
    )
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


class DetokenizeBody(Body):
    """Token ids to turn into text."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [72, 105]}]})
    model: str | None = Field(None, max_length=512)
    tokens: TokenIds
