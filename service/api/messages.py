"""POST /v1/messages: Anthropic's form of chats, as a translation of chat requests and of their answers."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service.api.answers import Layout, answer, json_of
from service.api.bodies import EngineRoute, JsonRoute
from service.api.context import Context, Served
from service.api.envelope import envelope_of
from service.api.errors import REFUSALS, ApiError, message_error
from service.api.parts import Change, Part, PartsReader
from service.api.requests import Job
from service.api.schemas.answers import Usage
from service.api.schemas.message_answers import (
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    InputDelta,
    MessageAnswer,
    MessageEnd,
    MessageEnding,
    MessageError,
    MessageStart,
    MessageStop,
    MessageUsage,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    TokenCount,
    ToolUseBlock,
)
from service.api.schemas.messages import (
    CountBody,
    InputText,
    InputThinking,
    InputToolResult,
    InputToolUse,
    InputTurn,
    MessagesBody,
    MessageTool,
    MessageToolChoice,
    TextContent,
)
from service.api.sse import event
from service.api.translation import Translation, translated_job, translated_prompt
from service.generation import Piece
from service.observability.record import record_of
from service.text.tools.json_reader import MOST_NESTED, nests_within

router = APIRouter(tags=["messages"], route_class=EngineRoute)
counting = APIRouter(tags=["messages"], route_class=JsonRoute)

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {**refusal, "model": MessageError} for status, refusal in REFUSALS.items()
}
_EVENTS = {"content": {"text/event-stream": {"schema": {"type": "object", "required": ["type"]}}}}

_NAMES = (
    (r"^max_completion_tokens$", "max_tokens"),
    (r"^stop\b", "stop_sequences"),
    (r"^response_format(\.json_schema)?", "output_config.format"),
    (r"^reasoning_effort$", "output_config.effort"),
    (r"^chat_template_kwargs\.enable_thinking$", "thinking.type"),
    (r"^chat_template_kwargs\.thinking_budget$", "thinking.budget_tokens"),
    (r"\.function\.parameters\b", ".input_schema"),
    (r"\.function\b", ""),
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


@router.post(
    "/v1/messages", response_model=MessageAnswer, responses=_REFUSALS | {200: _EVENTS}, summary="Answer a conversation"
)
async def create_message(body: MessagesBody, request: Request, context: Served) -> Response:
    """The model's reasoning, text and calls as blocks; with `stream` as the events that Anthropic publishes."""
    envelope = envelope_of(request, context.settings)
    job = await translated_job(body, lambda: _translation(body), _turns(body), context, envelope)
    return await answer(request, context, job, MessageLayout(job, context))


@counting.post(
    "/v1/messages/count_tokens", response_model=TokenCount, responses=_REFUSALS, summary="Count a prompt's tokens"
)
async def count_tokens(body: CountBody, request: Request, context: Served) -> TokenCount:
    """The number of tokens of the prompt that the same request would have."""
    record = record_of(request.scope)
    prompt = await translated_prompt(body, lambda: _translation(body), _turns(body), context, record)
    return TokenCount(input_tokens=len(prompt))


def _turns(body: CountBody) -> int:
    return sum(1 if isinstance(turn.content, str) else len(turn.content) for turn in body.messages)


def _translation(body: CountBody) -> Translation:
    thinking, config, choice = body.thinking, body.output_config, body.tool_choice
    chat: dict[str, Any] = {
        "model": body.model,
        "messages": _messages(body),
        "continue_final_message": body.messages[-1].role == "assistant",
        "tools": [_tool(tool) for tool in body.tools],
        "tool_choice": None if choice is None else _tool_choice(choice),
        "parallel_tool_calls": choice is None or not choice.disable_parallel_tool_use,
        "reasoning_effort": None if config is None else config.effort,
    }
    if thinking is not None:
        enabled = {"enabled": True, "disabled": False}.get(thinking.type)
        chat["chat_template_kwargs"] = {"enable_thinking": enabled, "thinking_budget": thinking.budget_tokens}
    if config is not None and config.format is not None:
        named = {"name": "message", "schema": config.format.schema_}
        chat["response_format"] = {"type": "json_schema", "json_schema": named}
    if isinstance(body, MessagesBody):
        chat |= {name: getattr(body, name) for name in ("max_tokens", "temperature", "top_p", "top_k", "stream")}
        chat["stop"] = body.stop_sequences
    return Translation(chat=chat, names=_NAMES)


def _messages(body: CountBody) -> list[dict[str, Any]]:
    messages = [] if body.system is None else [{"role": "system", "content": _text(body.system)}]
    for turn in body.messages:
        messages += _turn(turn)
    return messages


def _turn(turn: InputTurn) -> Iterator[dict[str, Any]]:
    """A turn as messages: results of calls have messages of their own, and the other blocks are one."""
    if isinstance(turn.content, str):
        yield {"role": turn.role, "content": turn.content}
        return
    texts: list[str] = []
    message: dict[str, Any] = {}
    for block in turn.content:
        match block:
            case InputText():
                texts.append(block.text)
            case InputThinking():
                message["reasoning_content"] = message.get("reasoning_content", "") + block.thinking
            case InputToolUse():
                message.setdefault("tool_calls", []).append(_call(block))
            case InputToolResult():
                yield from [{"role": turn.role, "content": "".join(texts)}] if texts else []
                texts.clear()
                yield _result(block)
    if texts or message:
        content = "".join(texts) if texts or "tool_calls" not in message else None
        yield {"role": turn.role, "content": content, **message}


def _call(block: InputToolUse) -> dict[str, Any]:
    arguments = json.dumps(block.input, ensure_ascii=False)
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _result(block: InputToolResult) -> dict[str, Any]:
    text = "" if block.content is None else _text(block.content)
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": f"Error: {text}" if block.is_error else text}


def _text(content: TextContent) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _tool(tool: MessageTool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": {**function, "strict": tool.strict}}


def _tool_choice(choice: MessageToolChoice) -> Any:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return _CHOICES[choice.type]


class MessageLayout(Layout):
    """A message of blocks, or the events that build it."""

    prefix = "msg_"

    def __init__(self, job: Job, context: Context) -> None:
        super().__init__(job, context)
        self._reader = PartsReader(job)

    def begin(self, usage: Callable[[], Usage]) -> Iterator[bytes]:
        yield _event(MessageStart(type="message_start", message=self._message(usage())))

    def add(self, index: int, piece: Piece, usage: Callable[[], Usage]) -> Iterator[bytes]:
        for change in self._reader.push(piece):
            yield _event(_block_event(change))

    def end(self, usage: Callable[[], Usage]) -> Iterator[bytes]:
        ending = MessageEnding(stop_reason=self._stop_reason(), stop_sequence=self._stop_sequence())
        yield _event(MessageEnd(type="message_delta", delta=ending, usage=_usage(usage())))
        yield _event(MessageStop(type="message_stop"))

    def failure(self, error: ApiError) -> bytes:
        return event(message_error(error).model_dump_json(), "error")

    def whole(self, pieces: Sequence[Sequence[Piece]], usage: Usage) -> MessageAnswer:
        for piece in pieces[0]:
            for _ in self._reader.push(piece):
                pass
        return self._message(usage)

    def _message(self, usage: Usage) -> MessageAnswer:
        return MessageAnswer(
            id=self.id,
            type="message",
            role="assistant",
            model=self.model,
            content=[_block(part) for part in self._reader.parts],
            stop_reason=self._stop_reason(),
            stop_sequence=self._stop_sequence(),
            usage=_usage(usage),
        )

    def _stop_reason(self) -> StopReason | None:
        """The reason why the message ended; None if it has not."""
        match self._reader.last:
            case None:
                return None
            case Piece(finish_reason="length"):
                return "max_tokens"
            case Piece(stopped=str()):
                return "stop_sequence"
        return "tool_use" if self._reader.called else "end_turn"

    def _stop_sequence(self) -> str | None:
        return None if self._reader.last is None else self._reader.last.stopped


def _block_event(change: Change) -> BaseModel:
    part = change.part
    match change.kind:
        case "begin":
            return BlockStart(type="content_block_start", index=part.index, content_block=_empty_block(part))
        case "add":
            return BlockDelta(type="content_block_delta", index=part.index, delta=_delta(change))
        case "end":
            return BlockStop(type="content_block_stop", index=part.index)


def _empty_block(part: Part) -> Block:
    return _block(Part(part.index, part.kind, "{}" if part.kind == "call" else "", part.name, part.call_id))


def _block(part: Part) -> Block:
    match part.kind:
        case "text":
            return TextBlock(type="text", text=part.text)
        case "reasoning":
            return ThinkingBlock(type="thinking", thinking=part.text, signature="")
        case "call":
            return ToolUseBlock(type="tool_use", id=part.call_id, name=part.name, input=_arguments(part.text))


def _delta(change: Change) -> TextDelta | ThinkingDelta | InputDelta:
    match change.part.kind:
        case "text":
            return TextDelta(type="text_delta", text=change.text)
        case "reasoning":
            return ThinkingDelta(type="thinking_delta", thinking=change.text)
        case "call":
            return InputDelta(type="input_json_delta", partial_json=change.text)


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call; a text that is no JSON object is kept under the name that Anthropic gives it."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        # Half of a surrogate pair can be escaped in JSON, and not be sent.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) and nests_within(value, MOST_NESTED) else {"INVALID_JSON": text}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _usage(usage: Usage) -> MessageUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    return MessageUsage(
        input_tokens=usage.prompt_tokens - cached,
        cache_creation_input_tokens=0,
        cache_read_input_tokens=cached,
        output_tokens=usage.completion_tokens,
    )


def _event(told: BaseModel) -> bytes:
    """The event of a stream that is named by its type."""
    return event(json_of(told), str(getattr(told, "type", "")))
