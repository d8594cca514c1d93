"""POST /v1/responses: OpenAI's newer form of chats, as a translation of chat requests and of their answers."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service.api.answers import Layout, answer
from service.api.bodies import EngineRoute
from service.api.context import JobContext, Served
from service.api.envelope import Envelope, envelope_of
from service.api.errors import REFUSALS, ApiError
from service.api.logprobs import token_logprobs
from service.api.parts import Change, Part, PartsReader
from service.api.requests import Job
from service.api.schemas.answers import ErrorBody, Usage
from service.api.schemas.response_answers import (
    IncompleteDetails,
    InputTokensDetails,
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputReasoningText,
    OutputText,
    OutputTokensDetails,
    ResponseAnswer,
    ResponseEvent,
    ResponseUsage,
)
from service.api.schemas.responses import (
    ChosenFunction,
    InputCall,
    InputCallOutput,
    InputItem,
    InputMessage,
    InputReasoning,
    ResponseContent,
    ResponsesBody,
    ResponseTool,
    TextFormat,
)
from service.api.sse import event
from service.api.translation import Translation, translated_job
from service.generation import Piece

router = APIRouter(tags=["responses"], route_class=EngineRoute)
stored = APIRouter(tags=["responses"])

_NAMES = (
    (r"^messages.*$", "input"),
    (r"^max_(completion_)?tokens$", "max_output_tokens"),
    (r"^response_format(\.json_schema)?", "text.format"),
    (r"^reasoning_effort$", "reasoning.effort"),
    (r"^logprobs$", "top_logprobs"),
    (r"\.function\b", ""),
)


@router.post(
    "/v1/responses",
    response_model=ResponseAnswer,
    responses=REFUSALS | {200: {"content": {"text/event-stream": {"schema": ResponseEvent.model_json_schema()}}}},
    summary="Answer a conversation",
)
async def create_response(body: ResponsesBody, request: Request, context: Served) -> Response:
    """The model's reasoning, message and calls; with `stream` as the events that OpenAI publishes, in their order.

    Nothing is stored, so earlier turns come in `input`.
    """
    job = await response_job(body, context, envelope_of(request, context.settings))
    return await answer(request, context, job, ResponseLayout(job, context, body))


@stored.get("/v1/responses/{name}", responses={404: {"model": ErrorBody}}, summary="Not there")
@stored.get("/v1/responses/{name}/input_items", include_in_schema=False)
@stored.delete("/v1/responses/{name}", responses={404: {"model": ErrorBody}}, summary="Not there")
@stored.post("/v1/responses/{name}/cancel", include_in_schema=False)
async def stored_response(name: str) -> Response:
    """Always 404, because responses are not stored."""
    raise ApiError(
        404, f"The response {name!r:.128} is not here: this server does not store responses.", code="not_found"
    )


async def response_job(body: ResponsesBody, context: JobContext, envelope: Envelope) -> Job:
    """A request for a response as a job. Raises ApiError."""
    turns = 1 if isinstance(body.input, str) else len(body.input)
    return await translated_job(body, lambda: _translation(body), turns, context, envelope)


def _translation(body: ResponsesBody) -> Translation:
    options, reasoning = body.text, body.reasoning
    ignored = [f"reasoning.{name}" for name in ("summary", "generate_summary") if getattr(reasoning, name, None)]
    if options is not None and options.verbosity not in (None, "medium"):
        ignored.append("text.verbosity")
    if "reasoning.encrypted_content" in body.include:
        ignored.append("include")
    logprobs = "message.output_text.logprobs" in body.include or body.top_logprobs > 0
    choice: Any = body.tool_choice
    if isinstance(choice, ChosenFunction):
        choice = {"type": "function", "function": {"name": choice.name}}
    chat = {
        "model": body.model,
        "messages": _messages(body),
        "tools": [_tool(tool) for tool in body.tools],
        "tool_choice": choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "seed": body.seed,
        "stream": body.stream,
        "logprobs": logprobs,
        "top_logprobs": body.top_logprobs if logprobs else None,
        "response_format": None if options is None or options.format is None else _response_format(options.format),
        "reasoning_effort": None if reasoning is None else reasoning.effort,
        "chat_template_kwargs": _plain(body.chat_template_kwargs),
        "cache_salt": body.cache_salt,
    }
    return Translation(chat=chat, names=_NAMES, ignored=ignored)


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    """The conversation; the items of one turn of the assistant become one message."""
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    turn = _Turn()
    for item in body.input:
        match item:
            case InputMessage(role="assistant") | InputCall() | InputReasoning():
                messages += turn.take(item)
            case InputMessage():
                messages += [*turn.close(), {"role": item.role, "content": _text(item.content)}]
            case InputCallOutput():
                result = {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
                messages += [*turn.close(), result]
    return [*messages, *turn.close()]


class _Turn:
    """One message of the assistant, gathered from its reasoning, its text and its calls, which come in this order."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}

    def take(self, item: InputItem) -> Iterator[dict[str, Any]]:
        """Add an item; the result is the message before it, if the item begins another one."""
        match item:
            case InputReasoning():
                texts = item.content or item.summary or []
                yield from self.close(unless_empty_of=("reasoning_content", "content", "tool_calls"))
                if texts:
                    self._message["reasoning_content"] = "\n".join(part.text for part in texts)
            case InputMessage():
                yield from self.close(unless_empty_of=("content", "tool_calls"))
                self._message["content"] = _text(item.content)
            case InputCall():
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                self._message.setdefault("tool_calls", []).append(call)

    def close(self, unless_empty_of: Sequence[str] = ("reasoning_content", "content", "tool_calls")) -> Iterator[Any]:
        """The message, if it has any of these parts; another one can begin then."""
        if not any(name in self._message for name in unless_empty_of):
            return
        message, self._message = self._message, {}
        if "tool_calls" not in message:
            message.setdefault("content", "")
        yield {"role": "assistant", **message}


def _text(content: ResponseContent) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _tool(tool: ResponseTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(include={"name", "description", "parameters", "strict"})}


def _response_format(given: TextFormat) -> dict[str, Any]:
    if given.type != "json_schema":
        return {"type": given.type}
    return {"type": given.type, "json_schema": {"name": given.name or "response", "schema": given.schema_}}


def _plain(body: BaseModel | None) -> dict[str, Any] | None:
    return None if body is None else body.model_dump(exclude_unset=True, by_alias=True)


class ResponseLayout(Layout):
    """A response: items of output, or the events that build them."""

    prefix = "resp_"

    def __init__(self, job: Job, context: JobContext, body: ResponsesBody) -> None:
        super().__init__(job, context)
        self._body = body
        self._reader = PartsReader(job)
        self._ids: list[str] = []
        self._sequence = 0

    def begin(self, usage: Callable[[], Usage]) -> Iterator[bytes]:
        beginning = self._response("in_progress", None)
        yield self._event("response.created", response=beginning)
        yield self._event("response.in_progress", response=beginning)

    def add(self, index: int, piece: Piece, usage: Callable[[], Usage]) -> Iterator[bytes]:
        for change in self._reader.push(piece):
            place = {"item_id": self._id(change.part), "output_index": change.part.index}
            match change.kind:
                case "begin":
                    yield from self._begin_item(change.part, place)
                case "add":
                    yield self._delta(change, place)
                case "end":
                    yield from self._end_item(change.part, place)

    def end(self, usage: Callable[[], Usage]) -> Iterator[bytes]:
        whole = self._finished(usage())
        yield self._event(f"response.{whole.status}", response=whole)

    def failure(self, error: ApiError) -> bytes:
        detail = error.body.error
        return self._event("error", code=detail.code, message=detail.message, param=detail.param)

    def whole(self, pieces: Sequence[Sequence[Piece]], usage: Usage) -> ResponseAnswer:
        for piece in pieces[0]:
            for _ in self._reader.push(piece):
                pass
        return self._finished(usage)

    def _begin_item(self, part: Part, place: dict[str, Any]) -> Iterator[bytes]:
        item = self._item(part, "in_progress", empty=True)
        yield self._event("response.output_item.added", output_index=part.index, item=item)
        if part.kind != "call":
            content = self._content(part, empty=True)
            yield self._event("response.content_part.added", **place, content_index=0, part=content)

    def _delta(self, change: Change, place: dict[str, Any]) -> bytes:
        match change.part.kind:
            case "call":
                return self._event("response.function_call_arguments.delta", **place, delta=change.text)
            case "reasoning":
                return self._event("response.reasoning_text.delta", **place, content_index=0, delta=change.text)
            case "text":
                logprobs = token_logprobs(self.tokenizer, change.pieces)
                name = "response.output_text.delta"
                return self._event(name, **place, content_index=0, delta=change.text, logprobs=logprobs)

    def _end_item(self, part: Part, place: dict[str, Any]) -> Iterator[bytes]:
        item = self._item(part, self._status(part))
        if part.kind == "call":
            name = "response.function_call_arguments.done"
            yield self._event(name, **place, name=part.name, arguments=part.text)
        else:
            content = self._content(part)
            told = {"logprobs": content.logprobs} if isinstance(content, OutputText) else {}
            yield self._event(f"response.{content.type}.done", **place, content_index=0, text=part.text, **told)
            yield self._event("response.content_part.done", **place, content_index=0, part=content)
        yield self._event("response.output_item.done", output_index=part.index, item=item)

    def _event(self, type: str, **fields: Any) -> bytes:
        """The next event of the stream."""
        told = _Event(type=type, sequence_number=self._sequence, **fields)
        self._sequence += 1
        return event(told.model_dump_json(exclude_unset=True), type)

    def _finished(self, usage: Usage) -> ResponseAnswer:
        assert self._reader.last is not None
        return self._response("completed" if self._reader.last.finish_reason == "stop" else "incomplete", usage)

    def _response(self, status: ItemStatus, usage: Usage | None) -> ResponseAnswer:
        body, params = self._body, self.job.choices[0].sent.params
        reasoning = {"effort": body.reasoning and body.reasoning.effort, "summary": None}
        text = body.text and body.text.format
        return ResponseAnswer(
            id=self.id,
            object="response",
            created_at=self.created,
            status=status,
            background=False,
            completed_at=int(time.time()) if status == "completed" else None,
            error=None,
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if status == "incomplete" else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            max_tool_calls=None,
            metadata=body.metadata or {},
            model=self.model,
            output=[self._item(part, self._status(part)) for part in self._reader.parts],
            parallel_tool_calls=body.parallel_tool_calls,
            previous_response_id=None,
            reasoning=reasoning,
            service_tier="default",
            store=False,
            temperature=params.temperature,
            text={"format": _plain(text) or {"type": "text"}},
            tool_choice=_plain(body.tool_choice)
            if isinstance(body.tool_choice, BaseModel)
            else body.tool_choice or "auto",
            tools=[
                tool.model_dump(include={"type", "name", "description", "parameters", "strict"}) for tool in body.tools
            ],
            top_logprobs=body.top_logprobs,
            top_p=params.top_p,
            truncation="disabled",
            usage=None if usage is None else self._usage(usage),
            user=body.user,
        )

    def _usage(self, usage: Usage) -> ResponseUsage:
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(
                cached_tokens=usage.prompt_tokens_details.cached_tokens, cache_write_tokens=0
            ),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=self._reader.reasoning_tokens),
            total_tokens=usage.total_tokens,
        )

    def _status(self, part: Part) -> ItemStatus:
        """The status of a part that has ended: only the last one of a response that was cut off is incomplete."""
        last = self._reader.last
        cut = last is not None and last.finish_reason == "length" and part is self._reader.parts[-1]
        return "incomplete" if cut else "completed"

    def _item(self, part: Part, status: ItemStatus, empty: bool = False) -> OutputItem:
        """The item of a part, complete or as it begins."""
        own = self._id(part)
        if part.kind == "call":
            arguments = "" if empty else part.text
            return OutputCall(
                type="function_call",
                id=own,
                call_id=part.call_id,
                name=part.name,
                arguments=arguments,
                status=status,
            )
        match self._content(part):
            case OutputText() as text:
                content = [] if empty else [text]
                return OutputMessage(type="message", id=own, role="assistant", status=status, content=content)
            case OutputReasoningText() as thoughts:
                return OutputReasoning(
                    type="reasoning", id=own, status=status, summary=[], content=[] if empty else [thoughts]
                )

    def _content(self, part: Part, empty: bool = False) -> OutputText | OutputReasoningText:
        text = "" if empty else part.text
        if part.kind == "reasoning":
            return OutputReasoningText(type="reasoning_text", text=text)
        logprobs = [] if empty else token_logprobs(self.tokenizer, part.pieces)
        return OutputText(type="output_text", text=text, annotations=[], logprobs=logprobs)

    def _id(self, part: Part) -> str:
        if part.index == len(self._ids):
            kind = {"call": "fc", "reasoning": "rs", "text": "msg"}[part.kind]
            self._ids.append(f"{kind}_{uuid.uuid4().hex}")
        return self._ids[part.index]


class _Event(ResponseEvent, extra="allow"):
    """An event with the fields of its type."""
