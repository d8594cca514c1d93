"""The deltas by which a client learns what became of its request. They change nothing of the request."""

import logging
from collections.abc import Sequence

import msgspec

from model.contract import ChunkResult
from service.engine.beams import Beams
from service.engine.grammar_source import GrammarError
from service.engine.messages import Delta, Drawn, FinishReason, Refusal
from service.engine.request import Request

logger = logging.getLogger(__name__)


def last_delta(request: Request, reason: FinishReason, error: str | None = None) -> Delta:
    """The last delta of a request that ends without a token."""
    return Delta(
        id=request.addressee,
        tokens=[],
        logprobs=None,
        finish_reason=reason,
        cached_tokens=request.cached_tokens or 0,
        error=error,
        times=request.times,
    )


def step_delta(
    request: Request, outcome: ChunkResult, reason: FinishReason | None = None, tokens: Sequence[int] = ()
) -> Delta:
    """The news that a step brought for a request, with as many of the draws as are its new `tokens`."""
    logprobs = None
    if request.params.logprobs is not None:
        logprobs = [entry for entry in outcome.logprobs[: len(tokens)] if entry]
    delta = Delta(request.addressee, [*tokens], logprobs, reason, request.cached_tokens or 0, times=request.times)
    if not request.wishes:
        return delta
    return msgspec.structs.replace(
        delta,
        scores=outcome.scores,
        pooled=outcome.pooled,
        inspection=outcome.inspection,
        distributions=outcome.distributions,
    )


def drawn_news(requests: Sequence[Request], tokens: list[int]) -> Drawn:
    """The news of requests that have just drawn one of `tokens` each, and go on."""
    return Drawn(
        ids=[request.id for request in requests],
        tokens=tokens,
        cached_tokens=[request.cached_tokens or 0 for request in requests],
        queue=[request.queue for request in requests],
        prefill=[request.prefill for request in requests],
        decode=[request.last_drawn - request.first_drawn for request in requests],
    )


def refused_delta(request: Request, refusal: Refusal) -> Delta:
    """The last delta of a request that the engine does not begin, or does not go on with."""
    return Delta(
        id=request.addressee, tokens=[], logprobs=None, finish_reason="refused", refusal=refusal, times=request.times
    )


def rejected_delta(request: Request, failure: Exception) -> Delta:
    """The last delta of a request whose grammar ends it."""
    if request.guide is None or not isinstance(failure, GrammarError):
        logger.error("a grammar could not be followed", exc_info=failure)
        return last_delta(request, "error", "the engine failed to follow the grammar")
    return refused_delta(request, Refusal("invalid_grammar", str(failure), 0.0, request.guide.field))


def search_delta(request: Request, beams: Beams) -> Delta:
    """The last delta of a beam search that has ended."""
    found = beams.finished[: beams.search.count]
    return msgspec.structs.replace(last_delta(request, found[0].finish_reason), beams=found)
