"""Tools of a chat request: what of them the server can do with this model, and what the model is told of them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from service.api.context import JobContext
from service.api.errors import refusal
from service.api.grammars import check_grammar, grammar_of
from service.api.schemas.chat import ChatBody, NamedTool, Tool
from service.api.schemas.tokens import TokenizeBody
from service.engine.messages import Grammar
from service.text.call_grammar import CallableFunction, CallRule, call_grammar
from service.text.interface import ChatTemplate, Tokenizer
from service.text.message import MessageForm

_LAST_TOKENS = 8
"""Tokens that hold an opening marker and white space, even if no vocabulary had the marker."""


def check_tools(body: ChatBody | TokenizeBody, template: ChatTemplate) -> None:
    """Refuse tools that contradict one another, and whatever of them can't be done. Raises ApiError."""
    names = [tool.function.name for tool in body.tools]
    for index, tool in enumerate(body.tools):
        if tool.function.name in names[:index]:
            raise refusal(f"tools[{index}].function.name", "is the name of two tools")
    choice = body.tool_choice if isinstance(body, ChatBody) else None
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise refusal("tool_choice", "names a function that is not among the tools")
    if choice == "required" and not names:
        raise refusal("tool_choice", "needs tools")
    if isinstance(body, ChatBody) and _offered(body) and template.reasoning_format and not body.separate_reasoning:
        raise refusal("separate_reasoning", "is needed together with tools, because calls come after the reasoning")
    if _offered(body) and template.tool_format is None:
        raise refusal(
            "tools",
            "are not supported with this model, which writes calls in a form unknown here",
            "unsupported_parameter",
        )


def told_tools(body: ChatBody | TokenizeBody) -> list[dict[str, Any]] | None:
    """The tools that the model is told of, as its chat template takes them; None if there are none."""
    return [tool.model_dump(exclude_unset=True, exclude={"cache_control"}) for tool in _offered(body)] or None


def answer_form(body: ChatBody, context: JobContext, prompt: Sequence[int]) -> tuple[MessageForm, Grammar | None]:
    """The form of the messages that answer a valid request with this prompt, and the grammar that they have to follow.

    Raises ApiError for a grammar of the request that does not go with its tools.
    """
    template, tools = context.template, _offered(body)
    assert template is not None
    end = context.tokenizer.decode(prompt[-_LAST_TOKENS:], skip_special_tokens=False).rstrip()
    form = MessageForm(
        calls=template.tool_format if tools else None,
        functions=frozenset(tool.function.name for tool in tools),
        parallel=body.parallel_tool_calls and not isinstance(body.tool_choice, NamedTool),
        reasoning=template.reasoning_format,
        reasoning_opened=template.reasoning_format is not None and end.endswith(template.reasoning_format.opening),
    )
    grammar = grammar_of(body, context.settings.max_grammar)
    if grammar is not None and grammar.kind != "json_schema":
        if tools:
            raise refusal(grammar.field, "cannot be given together with tools")
        # It leaves no room for reasoning.
        form = replace(form, reasoning=None)
    elif _is_forced(body) or any(tool.function.strict for tool in tools) or (grammar and (tools or form.reasoning)):
        grammar = _joined_grammar(body, tools, form, grammar, context)
    return form if body.separate_reasoning else replace(form, reasoning=None), grammar


def _joined_grammar(
    body: ChatBody, tools: Sequence[Tool], form: MessageForm, content: Grammar | None, context: JobContext
) -> Grammar:
    """The grammar of messages with reasoning, calls, and content for which there may be a schema. Raises ApiError."""
    forced = _is_forced(body)
    rule = CallRule(
        functions=[
            CallableFunction(tool.function.name, _argument_schema(tool, index, forced))
            for index, tool in enumerate(tools)
            if not isinstance(body.tool_choice, NamedTool) or tool.function.name == body.tool_choice.function.name
        ],
        required=forced,
        parallel=form.parallel,
        content=None if content is None else _schema(content),
    )
    source = call_grammar(
        form.calls,
        rule,
        lambda text: _special_token(text, context.tokenizer),
        reasoning=form.reasoning,
        reasoning_opened=form.reasoning_opened,
    )
    grammar = Grammar("grammar", source, "tools" if content is None else content.field)
    check_grammar(grammar, body, context.settings.max_grammar)
    return grammar


def _argument_schema(tool: Tool, index: int, forced: bool) -> dict[str, Any] | None:
    """The schema that the arguments have to fit; None for any object. Raises ApiError."""
    if not (forced or tool.function.strict):
        return None
    schema = tool.function.parameters
    if schema is None:
        return {"additionalProperties": False}
    if schema.get("type", "object") != "object":
        raise refusal(f"tools[{index}].function.parameters", "should be the schema of an object")
    return schema


def _schema(grammar: Grammar) -> Any:
    """A JSON schema from its text, as an object. Raises ApiError."""
    try:
        schema = json.loads(grammar.source)
    except (ValueError, RecursionError):
        raise refusal(grammar.field, "should be a JSON schema") from None
    match schema:
        case dict():
            return schema
        case bool():
            return {} if schema else {"enum": []}
    raise refusal(grammar.field, "should be a JSON schema")


def _special_token(text: str, tokenizer: Tokenizer) -> int | None:
    tokens = tokenizer.encode(text, add_special_tokens=False, parse_special=True)
    return tokens[0] if len(tokens) == 1 and tokenizer.is_special(tokens[0]) else None


def _is_forced(body: ChatBody) -> bool:
    """Whether there has to be a call."""
    return body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)


def _offered(body: ChatBody | TokenizeBody) -> list[Tool]:
    """The tools that the model may call."""
    return [] if isinstance(body, ChatBody) and body.tool_choice == "none" else body.tools
