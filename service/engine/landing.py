"""The landing of a step: requests grow by the tokens that were drawn, have their wishes fulfilled, and end.

It does not know how the step was planned.
"""

from collections.abc import Sequence
from math import isnan

from model.contract import INVALID_TOKEN, Chunk, ChunkResult, StepResult
from service.engine.drafting import Drafting, agreement
from service.engine.guides import Guide
from service.engine.messages import Counters, Delta, News, Refusal
from service.engine.news import drawn_news, last_delta, refused_delta, step_delta
from service.engine.request import Request
from service.engine.roster import Roster
from service.engine.searches import Searches
from service.engine.steps import Step

NO_EXTRAS = ChunkResult()
NOT_FINITE = "the model produced no finite logits"
NOTHING_LEFT = Refusal(
    "nothing_to_draw", "The request's restrictions (such as allowed_token_ids and bad_words) left no token to draw", 0.0
)


class Landing:
    """Takes in the results of steps.

    A token that was drawn for a request which has ended meanwhile is dropped. A request that drew no token ends, and
    so does one whose values are no numbers: nothing that it computed is found again.
    """

    def __init__(self, roster: Roster, searches: Searches, drafting: Drafting, counters: Counters) -> None:
        self._roster = roster
        self._pool = roster.pool
        self._callers = roster.callers
        self._searches = searches
        self._drafting = drafting
        self._counters = counters

    def land(self, step: Step, result: StepResult, now: float) -> list[News]:
        """Take in the results of a step; returns news of each request that drew. `now` is in seconds."""
        news = self._draw_plainly(step, result.tokens, now)
        if not step.others:
            return news
        for request, chunk, outcome in zip(step.others, step.plan.others, result.others, strict=True):
            if not request.ended and (delta := self._take(request, chunk, outcome, now)):
                news.append(delta)
        return news + self._searches.advance(step.others)

    def fail(self, request: Request, message: str) -> Delta:
        """End a request whose values may be wrong."""
        self._searches.end(request, sound=False)
        return last_delta(request, "error", message)

    def _draw_plainly(self, step: Step, tokens: Sequence[int], now: float) -> list[News]:
        """Append one of `tokens` to each request of a step that decodes plainly."""
        news: list[News] = []
        going, kept = [], []
        for request, start, token in zip(step.plain, step.plan.decoding.starts, tokens, strict=True):
            if request.ended:
                continue
            if token == INVALID_TOKEN:
                news.append(self._fail_draw(request))
                continue
            request.promised -= 1
            reason = request.append(token)
            self._note_draw(request, 1, start + 1, now)
            if reason is None:
                going.append(request)
                kept.append(token)
            else:
                self._roster.end(request)
                news.append(step_delta(request, NO_EXTRAS, reason, [token]))
        return [drawn_news(going, kept), *news] if going else news

    def _take(self, request: Request, chunk: Chunk, outcome: ChunkResult, now: float) -> Delta | None:
        """Take in the result of one chunk."""
        if request.void:
            request.void = False
            return None
        if request.counted < len(request.prompt):
            self._count(request, chunk)
        if (outcome.scores or outcome.distributions) and _unsound(outcome):
            return self.fail(request, NOT_FINITE)
        if request.guide is not None and chunk.draws and _breaks_off(request.guide, request, outcome):
            # The last token is computed and drawn from again, and a chunk that follows the dropped token is void.
            request.promised -= 1
            request.take_back(chunk.start if request.wishes else chunk.stop - 1)
            return None
        if request.wishes:
            request.collected = max(request.collected, chunk.stop)
        if chunk.draws and request.search is not None:
            return self._draw_beam(request, chunk, outcome, now)
        if chunk.draws:
            return self._draw(request, chunk, outcome, now)
        if not request.params.max_tokens and chunk.stop == request.length:
            return self._complete(request, outcome, now)
        return step_delta(request, outcome) if chunk.scores or chunk.pooled or chunk.inspect else None

    def _count(self, request: Request, chunk: Chunk) -> None:
        """Count the prompt tokens of a chunk as computed, and the tokens before it as found, once each."""
        stop = min(chunk.stop, len(request.prompt))
        if stop > request.counted:
            self._counters.prompt_tokens += stop - request.counted
            self._counters.cached_prompt_tokens += max(min(chunk.start, stop) - request.counted, 0)
            request.counted = stop

    def _draw(self, request: Request, chunk: Chunk, outcome: ChunkResult, now: float) -> Delta:
        """Append the drawn tokens, as far as the drafts were right, and end the request if one of them was the last."""
        right = agreement(outcome.drafts or request.drafts, outcome.tokens)
        drawn = outcome.tokens[: right + 1]
        if INVALID_TOKEN in drawn:
            return self._fail_draw(request)
        request.promised -= 1
        self._drafting.settle(request, right)
        tokens: list[int] = []
        reason = None
        while reason is None and len(tokens) < len(drawn):
            tokens.append(drawn[len(tokens)])
            reason = request.append(tokens[-1])
        self._note_draw(request, len(tokens), min(chunk.stop + right, request.known), now)
        self._roster.leaders.remove(request)
        if reason is not None:
            self._roster.end(request)
        elif len(chunk.draws) > 1:
            self._pool.shrink(request)
        if request.guide is not None and reason is None:
            request.guide.advance(tokens)
        return step_delta(request, outcome, reason, tokens)

    def _draw_beam(self, request: Request, chunk: Chunk, outcome: ChunkResult, now: float) -> Delta | None:
        """Take in the likeliest next tokens of a beam; the token that was drawn has no meaning."""
        request.promised -= 1
        entry = outcome.logprobs[0]
        if entry is None or INVALID_TOKEN in outcome.tokens:
            return self.fail(request, NOT_FINITE)
        self._note_draw(request, 1, min(chunk.stop, request.known), now)
        self._roster.leaders.remove(request)
        self._searches.land(request, entry)
        return None

    def _note_draw(self, request: Request, count: int, computed: int, now: float) -> None:
        """Note that a request, of which so many tokens are computed, has drawn `count` tokens."""
        # Blocks are published only here and only this far: finite logits show that the computed values are sound.
        self._pool.publish(request, computed)
        request.note_draw(now)
        self._counters.generated_tokens += count
        self._callers.spend(request.caller, count, now)

    def _fail_draw(self, request: Request) -> Delta:
        """End a request that drew no token."""
        failed = self.fail(request, NOT_FINITE)
        return refused_delta(request, NOTHING_LEFT) if request.params.restricts else failed

    def _complete(self, request: Request, outcome: ChunkResult, now: float) -> Delta:
        """End a request that generates nothing.

        Its blocks are published as far as a trial draw has shown that they are sound; a caller that tries one setting
        after the other then finds them. Nothing shows it of the others: they go unpublished.
        """
        request.note_draw(now)
        if outcome.distributions:
            self._pool.publish(request, outcome.distributions[-1].position + 1)
        self._searches.end(request)
        return step_delta(request, outcome, "length")


def _unsound(outcome: ChunkResult) -> bool:
    """Whether a chunk computed something that is no number."""
    return any(isnan(entry.chosen) for entry in outcome.scores) or any(
        shown.drawn == INVALID_TOKEN for shown in outcome.distributions
    )


def _breaks_off(guide: Guide, request: Request, outcome: ChunkResult) -> bool:
    """Whether a request's text, with the drawn token, could not be ended as its grammar wants within max_tokens."""
    (token, *_) = outcome.tokens
    if token == INVALID_TOKEN:
        return False
    return not guide.keeps(token, request.params.max_tokens - len(request.output) - 1)
