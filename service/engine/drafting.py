"""Drafts in a step: which requests get them, how many, and what becomes of them.

It does not know how tokens are guessed.
"""

from collections.abc import Sequence

from service.engine.blocks import BlockPool
from service.engine.drafts import Guess
from service.engine.messages import Counters
from service.engine.request import Request


class Drafting:
    """Gives requests drafts while few run: in a larger batch, wrong drafts cost others more than right ones save."""

    def __init__(self, pool: BlockPool, counters: Counters, most: int, running: int, guess: Guess) -> None:
        """A request gets up to `most` drafts in a step, while no more than `running` requests own blocks."""
        self._pool = pool
        self._counters = counters
        self._most = most
        self._running = running
        self._guess = guess

    def active(self, running: int) -> bool:
        """Whether any request may get drafts while so many own blocks."""
        return self._most > 0 and running <= self._running

    def allows(self, request: Request, running: int) -> bool:
        """Whether a request may get drafts while so many own blocks. It then waits for its own draw before its next
        chunk is planned.

        A request whose generated positions are looked at gets none: a wrong draft's position is not the request's.
        """
        if not self.active(running) or request.search is not None:
            return False
        if request.params.reads_output or request.guide is not None:
            return False
        return request.wanted.trace is None or not request.wanted.trace.generated

    def draft(self, decoding: Sequence[Request], budget: int, running: int) -> None:
        """Give decoding requests drafts from what is left of a step's `budget` and of the free blocks."""
        if not self.active(running):
            return
        for request in decoding:
            most = min(budget, self._most, request.reach, request.params.max_tokens - request.drawn - 1)
            drafts = self._guess(request, most) if most > 0 and self.allows(request, running) else ()
            if not drafts:
                continue
            if self._pool.grow(request, len(drafts)):
                request.drafts = drafts
                budget -= len(drafts)
                self._counters.drafts += 1
                self._counters.drafted_tokens += len(drafts)
            else:
                self._pool.shrink(request)

    def settle(self, request: Request, right: int) -> None:
        """End the flight of a request's drafts, the first `right` of which were right."""
        if request.drafts:
            request.reach = max(request.reach, 2 * right) if right == len(request.drafts) else right + 1
        request.drafts = ()
        self._counters.accepted_tokens += right


def agreement(drafts: Sequence[int], drawn: Sequence[int]) -> int:
    """Number of leading drafts that the draws before them gave as well."""
    if not drafts:
        return 0
    pairs = enumerate(zip(drafts, drawn, strict=False))
    return next((index for index, (draft, token) in pairs if draft != token), len(drafts))
