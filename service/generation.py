"""One completion, from the engine's tokens to text: detokenising, stop strings, counting.

The routes and the terminal share it. It knows nothing of HTTP, of templates, or of the prompt's origin.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, Self

from model.array import Array
from model.inspection import Distribution, InspectionResult
from model.limits import ModelLimits
from model.token_logprobs import TokenLogprobs
from service.engine.interface import EngineClient
from service.engine.messages import Beam, EngineRequest, Refusal, RequestTimes
from service.engine.status import EngineLost
from service.text.detokenizer import Detokenizer
from service.text.interface import Tokenizer


class GenerationError(Exception):
    """The engine failed a request that it had accepted; the message is one line, fit for the client."""


class GenerationRefused(Exception):
    """The engine did not begin a request, or its grammar ended it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


def drawable(tokens: Iterable[int], limits: ModelLimits) -> tuple[int, ...]:
    """The distinct tokens that a step can draw, in order.

    Files and tokenizers may name tokens beyond the logits; these are left out.
    """
    return tuple(dict.fromkeys(token for token in tokens if token < limits.vocab_size))


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One completion to generate. Its values are valid and fit the engine's limits."""

    sent: EngineRequest
    """The part of the request that the engine gets."""
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    """Keep the stop string, or the stop token's text, at the end of the completion."""
    skip_special_tokens: bool = True
    kept_special: frozenset[str] = frozenset()
    """Special tokens that stay in the text even so, because the text's reader needs them."""


@dataclass(slots=True)  # Not frozen: there is one for each token, and freezing takes most of the time.
class Piece:
    """The part of a completion that one drawn token adds. The last piece has a finish reason."""

    text: str
    """Text that is certain by now; empty while a character or a possible stop string is incomplete."""
    token: int | None
    """The drawn token; None in the only piece of a completion for which no token was to be generated."""
    logprobs: TokenLogprobs | None
    """The token's log-probabilities; None if they were not asked for."""
    finish_reason: Literal["stop", "length"] | None
    scores: Sequence[TokenLogprobs] = ()
    """In the first piece, the log-probabilities of the prompt's tokens but the first, if they are wanted."""
    inspection: InspectionResult | None = None
    """The inspection of the positions up to the one that the token was drawn from, since the piece before."""
    distributions: Sequence[Distribution] = ()
    """The distributions that came with the token; its own is the last of them, if it is wanted."""
    stopped: str | None = None
    """In the last piece, the stop string that ended the completion, if one did."""
    silent: bool = False
    """Whether the token is a stop token that ended the completion and is left out of its text."""
    followed: bool = False
    """Whether the next piece has arrived already, so that both may be sent to the client together."""


class Generation:
    """A request handed to the engine. Leaving its `with` cancels an unfinished one."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        request: GenerationRequest,
        ended: Callable[[], object] = lambda: None,
    ) -> None:
        """Submit the request at once. Raises EngineDead.

        `ended` is called as soon as the engine is done with the request.
        """
        self.request = request
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.times = RequestTimes()
        self.pooled: list[Array] = []
        """Parts of the prompt's embedding, as in `Delta`."""
        self._logprob = 0.0
        self.inspections: list[InspectionResult] = []
        """Inspections that came before any token; those that come with a token are in its piece."""
        self.distributions: list[Distribution] = []
        """The distributions of trial draws that came before any token."""
        self.alternatives: list[list[Piece]] = []
        """The further completions of a beam search, the best first, once the generation's own has come."""
        self._tokenizer = tokenizer
        self._detokenizer = self._new_detokenizer()
        self._stream = client.submit(request.sent, ended)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.cancel()

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of the completion's tokens so far, if the request asks for log-probabilities.

        A token that ends the completion counts as well, whether or not it is left out of the text.
        """
        return self._logprob / max(self.completion_tokens, 1)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The completion, one token at a time.

        Raises GenerationError if the engine fails the request, GenerationRefused if it does not begin it, and
        EngineLost if the engine dies.
        """
        scores: list[TokenLogprobs] = []
        async for delta in self._stream:
            # Deltas made by the client (abort, lost) have neither times nor cached tokens, so the earlier ones stay.
            self.times = delta.times or self.times
            self.cached_tokens = max(self.cached_tokens, delta.cached_tokens)
            match delta.finish_reason:
                case "refused":
                    assert delta.refusal is not None
                    raise GenerationRefused(delta.refusal)
                case "lost":
                    raise EngineLost(delta.error or "the engine is gone")
                case "abort" | "error":
                    raise GenerationError(delta.error or "the engine stopped before the completion was finished")
                case ending:
                    last = len(delta.tokens) - 1
            scores += delta.scores
            if delta.pooled is not None:
                self.pooled.append(delta.pooled)
            if not delta.tokens:
                self.inspections += [] if delta.inspection is None else [delta.inspection]
                self.distributions += delta.distributions
            if delta.beams:
                first, *self.alternatives = [self._beam(beam) for beam in delta.beams]
                for piece in first:
                    yield piece
                return
            if ending and not delta.tokens:
                yield Piece("", None, None, ending, scores)
                return
            for index, token in enumerate(delta.tokens):
                reason = ending if index == last else None
                piece = self._piece(token, delta.logprobs[index] if delta.logprobs else None, reason)
                if scores:
                    piece.scores, scores = scores, []
                if index == 0:
                    piece.inspection, piece.distributions = delta.inspection, delta.distributions
                if piece.finish_reason is not None:
                    # Cancel at once: the engine does not know of stop strings, and the piece's reader may take its
                    # time.
                    self._stream.cancel()
                    yield piece
                    return
                piece.followed = index < last or self._stream.ahead
                yield piece

    def _beam(self, beam: Beam) -> list[Piece]:
        """A completion that a search found."""
        self._detokenizer = self._new_detokenizer()
        last = len(beam.tokens) - 1
        return [
            self._piece(
                token,
                beam.logprobs[index] if beam.logprobs else None,
                beam.finish_reason if index == last else None,
            )
            for index, token in enumerate(beam.tokens)
        ]

    def _new_detokenizer(self) -> Detokenizer:
        request = self.request
        return Detokenizer(
            self._tokenizer,
            request.stop,
            request.include_stop,
            request.skip_special_tokens,
            request.sent.params.min_tokens,
            request.kept_special,
        )

    def _piece(self, token: int, logprobs: TokenLogprobs | None, reason: Literal["stop", "length"] | None) -> Piece:
        self.completion_tokens += 1
        self._logprob += 0.0 if logprobs is None else logprobs.chosen
        if reason == "stop" and not self.request.include_stop:
            text = self._detokenizer.end(token)
            return Piece(text, token, logprobs, reason, stopped=self._detokenizer.stopped, silent=True)
        text = self._detokenizer.push(token)
        if self._detokenizer.stopped:
            return Piece(text, token, logprobs, "stop", stopped=self._detokenizer.stopped)
        if reason is not None:
            text += self._detokenizer.finish()
        return Piece(text, token, logprobs, reason)


async def interleave(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of several completions as they come, each with the index of its completion.

    A slow consumer holds the producers back: at most one piece for each completion is buffered here.
    """
    if len(generations) == 1:
        async with aclosing(generations[0].pieces()) as pieces:
            async for piece in pieces:
                yield 0, piece
        return

    queue: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue(maxsize=len(generations))

    async def forward(index: int) -> None:
        try:
            async with aclosing(generations[index].pieces()) as pieces:
                async for piece in pieces:
                    await queue.put((index, piece))
        except Exception as error:
            await queue.put((index, error))

    tasks = [asyncio.create_task(forward(index)) for index in range(len(generations))]
    unfinished = len(tasks)
    try:
        while unfinished:
            index, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            unfinished -= item.finish_reason is not None
            yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
