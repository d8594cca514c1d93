"""POST /v1/chat/completions: the next message of a conversation."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api.answers import Format, answer
from service.api.bodies import EngineRoute
from service.api.context import Served
from service.api.envelope import envelope_of
from service.api.errors import REFUSALS
from service.api.logprobs import finite
from service.api.requests import chat_job
from service.api.schemas.answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from service.api.schemas.requests import ChatBody
from service.generation import Piece

router = APIRouter(tags=["chat"], route_class=EngineRoute)


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=REFUSALS, summary="Answer a chat")
async def create_chat_completion(body: ChatBody, request: Request, context: Served) -> Response:
    """Writes the assistant's next message, n times; with `stream` as server-sent events that hold its pieces."""
    job = await chat_job(body, context, envelope_of(request, context.settings))
    return await answer(request, context, job, ChatFormat(job, context))


class ChatFormat(Format):
    """Chat answers: whole messages, or deltas of them in a stream."""

    prefix = "chatcmpl"

    def opening(self, usage: Usage | None) -> Iterator[ChatChunk]:
        for index in range(len(self.job.choices)):
            delta = ChatDelta(role="assistant", content="")
            choice = ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None)
            yield self._chunk([choice], self.counts(usage) | (self._prompt() if index == 0 else {}))

    def chunk(self, index: int, piece: Piece, usage: Usage | None) -> ChatChunk:
        delta = ChatDelta(content=piece.text) if piece.text else ChatDelta()
        choice = ChatChunkChoice(
            index=index, delta=delta, logprobs=self._logprobs([piece]), finish_reason=piece.finish_reason
        )
        if self.job.return_token_ids:
            choice.token_ids = [piece.token]
        return self._chunk([choice], self.counts(usage))

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
        )

    def _choice(self, index: int, pieces: Sequence[Piece]) -> ChatChoice:
        reason = pieces[-1].finish_reason
        assert reason is not None
        choice = ChatChoice(
            index=index,
            message=ChatMessage(role="assistant", content="".join(piece.text for piece in pieces), refusal=None),
            logprobs=self._logprobs(pieces),
            finish_reason=reason,
        )
        if self.job.return_token_ids:
            choice.token_ids = [piece.token for piece in pieces]
        return choice

    def _chunk(self, choices: list[ChatChunkChoice], extra: dict[str, Any]) -> ChatChunk:
        return ChatChunk(
            id=self.id, object="chat.completion.chunk", created=self.created, model=self.model, choices=choices, **extra
        )

    def _prompt(self) -> dict[str, list[int]]:
        return {"prompt_token_ids": self.job.prompts[0]} if self.job.return_token_ids else {}

    def _logprobs(self, pieces: Sequence[Piece]) -> ChatLogprobs | None:
        if not self.job.logprobs:
            return None
        return ChatLogprobs(content=[self._token(piece) for piece in pieces if piece.logprobs is not None])

    def _token(self, piece: Piece) -> TokenLogprob:
        logprobs = piece.logprobs
        assert logprobs is not None
        likeliest = zip(logprobs.top_tokens, logprobs.top_logprobs, strict=True)
        return TokenLogprob(
            **self._entry(piece.token, logprobs.chosen),
            top_logprobs=[TopLogprob(**self._entry(token, logprob)) for token, logprob in likeliest],
        )

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self.tokenizer.token_bytes(token)
        return {"token": raw.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(raw)}
