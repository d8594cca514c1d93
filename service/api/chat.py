"""POST /v1/chat/completions: the next message of a conversation."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api.answers import Format, answer
from service.api.bodies import EngineRoute
from service.api.context import JobContext, Served
from service.api.envelope import envelope_of
from service.api.errors import REFUSALS
from service.api.logprobs import prompt_logprobs, token_logprobs
from service.api.requests import Job, chat_job
from service.api.schemas.answers import (
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatFinish,
    ChatLogprobs,
    ChatMessage,
    FunctionDelta,
    MessageToolCall,
    PromptLogprobs,
    ToolCallDelta,
    Usage,
)
from service.api.schemas.chat import ChatBody
from service.generation import Piece
from service.text.message import MessageDelta, MessageReader
from service.text.tools.reader import CallDelta

router = APIRouter(tags=["chat"], route_class=EngineRoute)


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=REFUSALS, summary="Answer a chat")
async def create_chat_completion(body: ChatBody, request: Request, context: Served) -> Response:
    """Writes the assistant's next message, n times; with `stream` as server-sent events that hold its pieces."""
    job = await chat_job(body, context, envelope_of(request, context.settings))
    return await answer(request, context, job, ChatFormat(job, context))


class ChatFormat(Format):
    """Chat answers: whole messages, or deltas of them in a stream."""

    prefix = "chatcmpl-"

    def __init__(self, job: Job, context: JobContext) -> None:
        super().__init__(job, context)
        self._scored = False
        self._readers = [MessageReader(job.message) for _ in job.choices]

    def opening(self, usage: Usage | None) -> Iterator[ChatChunk]:
        for index in range(len(self.job.choices)):
            delta = ChatDelta(role="assistant", content="")
            choice = ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None)
            yield self._chunk([choice], self.counts(usage) | (self._prompt() if index == 0 else {}))

    def text_chunk(self, index: int, text: str) -> ChatChunk:
        choice = ChatChunkChoice(index=index, delta=ChatDelta(content=text), logprobs=None, finish_reason=None)
        return self._chunk([choice], self.counts(None))

    def chunk(self, index: int, piece: Piece, usage: Usage | None) -> ChatChunk | str | None:
        addition = self._read(index, piece)
        if self.tells_text_alone(piece) and not (addition.reasoning or addition.calls):
            return addition.content or None
        if not (addition or self.tells(piece)):
            return None
        choice = ChatChunkChoice(
            index=index,
            delta=self._delta(addition),
            logprobs=self._logprobs([piece]),
            finish_reason=self._finish(index, piece),
        )
        if self.job.return_token_ids:
            choice.token_ids = [] if piece.token is None else [piece.token]
        for inspection in self.inspections([piece]):
            choice.inspection = inspection
        return self._chunk([choice], self.counts(usage) | self._scores(piece))

    def closing(self, usage: Usage) -> ChatChunk:
        return self._chunk([], {"usage": usage})

    def whole(self, pieces: Sequence[Sequence[Piece]], usage: Usage) -> ChatCompletion:
        return ChatCompletion(
            id=self.id,
            object="chat.completion",
            created=self.created,
            model=self.model,
            choices=[self._choice(index, own) for index, own in enumerate(pieces)],
            usage=usage,
            **self._prompt(),
            **self._scores(pieces[0][0]),
        )

    def _choice(self, index: int, pieces: Sequence[Piece]) -> ChatChoice:
        message = self._message([self._read(index, piece) for piece in pieces])
        reason = self._finish(index, pieces[-1])
        assert reason is not None
        choice = ChatChoice(
            index=index,
            message=message,
            logprobs=self._logprobs(pieces),
            finish_reason=reason,
        )
        if self.job.return_token_ids:
            choice.token_ids = [piece.token for piece in pieces if piece.token is not None]
        if self.inspection_writer is not None:
            choice.inspection = self.inspections(pieces)
        return choice

    def _read(self, index: int, piece: Piece) -> MessageDelta:
        return self._readers[index].push(piece.text, last=piece.finish_reason is not None)

    def _finish(self, index: int, piece: Piece) -> ChatFinish | None:
        called = piece.finish_reason == "stop" and self._readers[index].calls > 0
        return "tool_calls" if called else piece.finish_reason

    def _delta(self, addition: MessageDelta) -> ChatDelta:
        delta = ChatDelta()
        if addition.content:
            delta.content = addition.content
        if addition.reasoning:
            delta.reasoning_content = addition.reasoning
        if addition.calls:
            delta.tool_calls = [self._call_delta(call) for call in addition.calls]
        return delta

    def _call_delta(self, call: CallDelta) -> ToolCallDelta:
        if call.name is None:
            return ToolCallDelta(index=call.index, function=FunctionDelta(arguments=call.arguments))
        return ToolCallDelta(
            index=call.index,
            id=self._call_id(),
            type="function",
            function=FunctionDelta(name=call.name, arguments=call.arguments),
        )

    def _message(self, additions: Sequence[MessageDelta]) -> ChatMessage:
        content = "".join(addition.content for addition in additions)
        reasoning = "".join(addition.reasoning for addition in additions)
        calls: list[MessageToolCall] = []
        for call in (call for addition in additions for call in addition.calls):
            if call.name is not None:
                function = CalledFunction(name=call.name, arguments="")
                calls.append(MessageToolCall(id=self._call_id(), type="function", function=function))
            calls[-1].function.arguments += call.arguments
        message = ChatMessage(role="assistant", content=None if calls and not content else content, refusal=None)
        if reasoning:
            message.reasoning_content = reasoning
        if calls:
            message.tool_calls = calls
        return message

    def _call_id(self) -> str:
        assert self.job.message.calls is not None
        return self.job.message.calls.new_id()

    def _chunk(self, choices: list[ChatChunkChoice], extra: dict[str, Any]) -> ChatChunk:
        return ChatChunk(
            id=self.id, object="chat.completion.chunk", created=self.created, model=self.model, choices=choices, **extra
        )

    def _prompt(self) -> dict[str, list[int]]:
        return {"prompt_token_ids": self.job.prompts[0]} if self.job.return_token_ids else {}

    def _scores(self, piece: Piece) -> dict[str, PromptLogprobs]:
        """The prompt's log-probabilities, which come with the first piece of a choice and are told once."""
        top = self.job.prompt_logprobs
        if top is None or self._scored:
            return {}
        self._scored = True
        return {"prompt_logprobs": prompt_logprobs(self.tokenizer, self.job.prompts[0], piece.scores, top)}

    def _logprobs(self, pieces: Sequence[Piece]) -> ChatLogprobs | None:
        if not self.job.logprobs:
            return None
        return ChatLogprobs(content=token_logprobs(self.tokenizer, pieces))
