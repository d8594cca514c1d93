"""Tools of a chat request: what of them the server can do with this model, and what the model is told of them."""

from collections.abc import Sequence
from typing import Any

from service.api.errors import ApiError
from service.api.schemas.requests import ChatBody, NamedTool, TokenizeBody, Tool
from service.text.interface import ChatTemplate, Tokenizer
from service.text.message import MessageForm

_LAST_TOKENS = 8
"""Tokens that hold an opening marker and white space, even if no vocabulary had the marker."""


def check_tools(body: ChatBody | TokenizeBody, template: ChatTemplate) -> None:
    """Refuse tools that contradict one another, and whatever of them can't be done. Raises ApiError."""
    names = [tool.function.name for tool in body.tools]
    for index, tool in enumerate(body.tools):
        if tool.function.name in names[:index]:
            raise _refusal(f"tools[{index}].function.name", "is the name of two tools")
        if tool.function.strict:
            raise _unsupported(f"tools[{index}].function.strict", "is not supported by this server")
    choice = body.tool_choice if isinstance(body, ChatBody) else None
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise _refusal("tool_choice", "names a function that is not among the tools")
    if choice == "required" and not names:
        raise _refusal("tool_choice", "needs tools")
    if choice not in (None, "none", "auto"):
        raise _unsupported("tool_choice", "is not supported by this server but for 'none' and 'auto'")
    if _offered(body) and template.tool_format is None:
        raise _unsupported("tools", "are not supported with this model, which writes calls in a form unknown here")


def told_tools(body: ChatBody | TokenizeBody) -> list[dict[str, Any]] | None:
    """The tools that the model is told of, as its chat template takes them; None if there are none."""
    return [tool.model_dump(exclude_unset=True, exclude={"cache_control"}) for tool in _offered(body)] or None


def message_form(body: ChatBody, template: ChatTemplate, tokenizer: Tokenizer, prompt: Sequence[int]) -> MessageForm:
    """The form of the messages that answer a valid request, whose prompt these tokens are."""
    tools = _offered(body)
    reasoning = template.reasoning_format if body.separate_reasoning else None
    end = tokenizer.decode(prompt[-_LAST_TOKENS:], skip_special_tokens=False).rstrip()
    return MessageForm(
        calls=template.tool_format if tools else None,
        functions=frozenset(tool.function.name for tool in tools),
        parallel=body.parallel_tool_calls,
        reasoning=reasoning,
        reasoning_opened=reasoning is not None and end.endswith(reasoning.opening),
    )


def _offered(body: ChatBody | TokenizeBody) -> list[Tool]:
    """The tools that the model may call."""
    return [] if isinstance(body, ChatBody) and body.tool_choice == "none" else body.tools


def _refusal(param: str, problem: str) -> ApiError:
    return ApiError(400, f"{param}: {problem}.", param=param)


def _unsupported(param: str, problem: str) -> ApiError:
    return ApiError(400, f"{param}: {problem}.", param=param, code="unsupported_parameter")
