"""POST /v1/completions: continue text, or token ids."""

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from model.token_logprobs import TokenLogprobs
from service.api.answers import Format, answer
from service.api.bodies import EngineRoute
from service.api.context import JobContext, Served
from service.api.envelope import envelope_of
from service.api.errors import REFUSALS
from service.api.logprobs import finite, prompt_logprobs
from service.api.requests import Job, completion_job
from service.api.schemas.answers import Completion, CompletionChoice, CompletionLogprobs, Usage
from service.api.schemas.completions import CompletionBody
from service.generation import Piece
from service.text.interface import Tokenizer

router = APIRouter(tags=["completions"], route_class=EngineRoute)


@router.post("/v1/completions", response_model=Completion, responses=REFUSALS, summary="Continue a text")
async def create_completion(body: CompletionBody, request: Request, context: Served) -> Response:
    """Continues one or several prompts, n times each; with `stream` as server-sent events of the same shape."""
    job = await completion_job(body, context, envelope_of(request, context.settings))
    return await answer(request, context, job, CompletionFormat(job, context))


class CompletionFormat(Format):
    """Completion answers: text with log-probabilities, after the prompt if it is to be echoed."""

    prefix = "cmpl-"

    def __init__(self, job: Job, context: JobContext) -> None:
        super().__init__(job, context)
        self._told = [False] * len(job.choices)
        self._logprobs = [LogprobsWriter(self.tokenizer, request.skip_special_tokens) for request in job.choices]

    def opening(self, usage: Usage | None) -> Iterator[Completion]:
        for index, echo in enumerate(self.job.echo):
            # An echo with log-probabilities comes with the first piece, which has them.
            text = "" if self.job.scores_echo else echo
            if text or self.job.return_token_ids:
                yield self._chunk(self._choice(index, text, [], first=True), usage)

    def text_chunk(self, index: int, text: str) -> Completion:
        return self._chunk(self._choice(index, text, []), None)

    def chunk(self, index: int, piece: Piece, usage: Usage | None) -> Completion | str | None:
        if self.tells_text_alone(piece) and not self.job.scores_echo:
            return piece.text or None
        if not (piece.text or self.tells(piece)):
            return None
        first = not self._told[index]
        self._told[index] = True
        echo = self.job.echo[index] if first and self.job.scores_echo else ""
        choice = self._choice(index, echo + piece.text, [piece], scored=first)
        for inspection in self.inspections([piece]):
            choice.inspection = inspection
        return self._chunk(choice, usage)

    def closing(self, usage: Usage) -> Completion:
        return self._envelope([], {"usage": usage})

    def whole(self, pieces: Sequence[Sequence[Piece]], usage: Usage) -> Completion:
        choices = [
            self._choice(
                index, self.job.echo[index] + "".join(piece.text for piece in own), own, first=True, scored=True
            )
            for index, own in enumerate(pieces)
        ]
        if self.inspection_writer is not None:
            for choice, own in zip(choices, pieces, strict=True):
                choice.inspection = self.inspections(own)
        return self._envelope(choices, {"usage": usage})

    def _chunk(self, choice: CompletionChoice, usage: Usage | None) -> Completion:
        return self._envelope([choice], self.counts(usage))

    def _envelope(self, choices: list[CompletionChoice], counts: dict[str, Any]) -> Completion:
        return Completion(
            id=self.id, object="text_completion", created=self.created, model=self.model, choices=choices, **counts
        )

    def _choice(
        self, index: int, text: str, pieces: Sequence[Piece], first: bool = False, scored: bool = False
    ) -> CompletionChoice:
        """The next part of a choice: with the prompt's ids if it is the `first`, and with its scores if `scored`."""
        prompt = self.job.choices[index].sent.prompt
        logprobs = None
        if self.job.logprobs and pieces:
            writer = self._logprobs[index]
            logprobs = writer.empty()
            if scored and self.job.scores_echo:
                writer.write_prompt(logprobs, self.job.echo[index], prompt, pieces[0].scores)
            writer.write(logprobs, pieces)
        choice = CompletionChoice(
            index=index, text=text, logprobs=logprobs, finish_reason=pieces[-1].finish_reason if pieces else None
        )
        if self.job.return_token_ids:
            choice.token_ids = [piece.token for piece in pieces if piece.token is not None]
            if first:
                choice.prompt_token_ids = prompt
        if scored and self.job.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(self.tokenizer, prompt, pieces[0].scores, self.job.prompt_logprobs)
        return choice


class LogprobsWriter:
    """The log-probabilities of one choice in the older form; it counts characters from piece to piece."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def empty(self) -> CompletionLogprobs:
        """Lists without entries. An entry's `text_offset` is the character of the text at which its token begins."""
        return CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])

    def write(self, entries: CompletionLogprobs, pieces: Sequence[Piece]) -> None:
        """Add the entries of the next pieces, one for each token that was drawn: evaluation harnesses count them."""
        for piece in pieces:
            if piece.token is not None and piece.logprobs is not None:
                hidden = piece.silent or (self._skip_special and self._tokenizer.is_special(piece.token))
                self._add(entries, piece.token, piece.logprobs, hidden=hidden)

    def write_prompt(
        self, entries: CompletionLogprobs, echo: str, prompt: Sequence[int], scores: Sequence[TokenLogprobs]
    ) -> None:
        """Add the entries of the prompt that the text begins with; its first token has no log-probability."""
        for token, logprobs in zip(prompt, [None, *scores], strict=True):
            # The text of a prompt lacks the special tokens that were put before it.
            spelt = self._tokenizer.special_text(token)
            hidden = spelt is not None and not echo.startswith(spelt, self._offset)
            self._add(entries, token, logprobs, hidden=hidden)

    def _add(self, entries: CompletionLogprobs, token: int, logprobs: TokenLogprobs | None, *, hidden: bool) -> None:
        entries.tokens.append(self._name(token))
        entries.token_logprobs.append(None if logprobs is None else finite(logprobs.chosen))
        entries.top_logprobs.append(None if logprobs is None else self._likeliest(token, logprobs))
        entries.text_offset.append(self._offset)
        if not hidden:
            self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def _likeliest(self, token: int, logprobs: TokenLogprobs) -> dict[str, float]:
        """Log-probabilities by name, of the chosen token too. A name that several tokens share is the likeliest one's.

        Evaluation harnesses take a token whose log-probability is the highest here for the likeliest one.
        """
        named: dict[str, float] = {}
        for other, logprob in zip(logprobs.top_tokens, logprobs.top_logprobs, strict=True):
            named.setdefault(self._name(other), finite(logprob))
        named.setdefault(self._name(token), finite(logprobs.chosen))
        return named

    def _name(self, token: int) -> str:
        raw = self._tokenizer.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
