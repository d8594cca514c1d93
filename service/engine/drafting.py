"""Drafts in a step: which requests get them, how many, and what becomes of them.

It does not know how tokens are guessed.
"""

from collections.abc import Sequence

from service.engine.drafts import DraftPolicy
from service.engine.messages import Counters
from service.engine.request import Request
from service.engine.roster import Roster


class Drafting:
    """Gives requests drafts while few run: in a larger batch, wrong drafts cost others more than right ones save."""

    def __init__(self, roster: Roster, counters: Counters, policy: DraftPolicy) -> None:
        """`counters` count the drafts."""
        self._roster = roster
        self._counters = counters
        self._policy = policy

    @property
    def active(self) -> bool:
        """Whether few enough requests run for any to get drafts."""
        return self._policy.tokens > 0 and len(self._roster.running) <= self._policy.running

    def allows(self, request: Request) -> bool:
        """Whether a request may get drafts now. It then waits for its own draw before its next chunk is planned.

        A request whose generated positions are looked at gets none: a wrong draft's position is not the request's.
        """
        if not self.active or request.search is not None:
            return False
        if request.params.reads_output or request.guide is not None:
            return False
        return request.wanted.inspect is None or not request.wanted.inspect.generated

    def draft(self, decoding: Sequence[Request], budget: int) -> None:
        """Give decoding requests drafts from what is left of a step's `budget` and of the free blocks."""
        if not self.active:
            return
        pool = self._roster.pool
        for request in decoding:
            most = min(budget, self._policy.tokens, request.reach, request.params.max_tokens - request.drawn - 1)
            drafts = self._policy.guess(request, most) if most > 0 and self.allows(request) else ()
            if not drafts:
                continue
            if pool.grow(request, len(drafts)):
                request.drafts = drafts
                budget -= len(drafts)
                self._counters.drafts += 1
                self._counters.drafted_tokens += len(drafts)
            else:
                pool.shrink(request)

    def settle(self, request: Request, right: int) -> None:
        """End the flight of a request's drafts, the first `right` of which were right and so count as computed."""
        if request.drafts:
            request.reach = max(request.reach, 2 * right) if right == len(request.drafts) else right + 1
        request.computed += right
        request.drafts = ()
        self._counters.accepted_tokens += right


def agreement(drafts: Sequence[int], drawn: Sequence[int]) -> int:
    """Number of leading drafts that the draws before them gave as well."""
    if not drafts:
        return 0
    pairs = enumerate(zip(drafts, drawn, strict=False))
    return next((index for index, (draft, token) in pairs if draft != token), len(drafts))
