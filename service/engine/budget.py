"""The budget of a step: which requests get tokens of it, and how many.

It does not know what is computed for a token.
"""

from collections.abc import Sequence

from service.engine.drafting import Drafting
from service.engine.inspection_turns import InspectionTurns
from service.engine.request import Request
from service.engine.roster import Roster
from service.engine.steps import Step

OLDEST_SHARE = 4
"""Divisor of a step's budget for prompts: at least a quarter of it goes to the oldest prompt."""


class Budget:
    """Deals out the tokens of a step so that no prompt holds up another for long.

    Every step gives each decoding request its token. A share of the remaining budget is the oldest prompt's; the rest
    goes to the prompts with the fewest tokens to compute. A short prompt therefore passes long ones, and a long one is
    never starved: once it is the oldest, its share is certain.

    The oldest prompt is also admitted first, and while there are no blocks for it nobody else is admitted. Preemption
    takes blocks from the newest. All requests therefore end.
    """

    def __init__(self, roster: Roster, drafting: Drafting, inspection_turns: InspectionTurns, tokens: int) -> None:
        """`tokens` is the most that a step computes."""
        self._roster = roster
        self._drafting = drafting
        self._inspection_turns = inspection_turns
        self._tokens = tokens

    def shares(self, before: Step | None) -> tuple[list[Request], list[tuple[Request, int]]]:
        """The requests of the next step: those that decode plainly, and the others, each with its number of tokens.

        All own the blocks for them. `before` is the step in flight, if there is one.
        """
        self._grow()
        self._inspection_turns.begin(before)
        plain, shares = self._deal()
        if not plain and not shares and self._inspection_turns.holds_back:
            self._inspection_turns.release()
            return self._deal()
        return plain, shares

    def _deal(self) -> tuple[list[Request], list[tuple[Request, int]]]:
        """See `shares`."""
        full = self._roster.pool.full
        drafting = self._drafting.active
        plain, decoding, prompts = [], [], []
        for request in self._roster.running.values():
            if request.decodes_plainly and not drafting:
                if request.computed < request.longest:
                    plain.append(request)
            elif not self._inspection_turns.admits(request):
                continue
            elif request.behind > 1:
                # After a draw that was taken back a mask may be made for as long as a second.
                if not request.awaits_mask:
                    prompts.append(request)
            # A mask may have become ready since blocks were dealt out.
            elif request.behind == 1 and not full(request) and self._may_decode(request):
                decoding.append(request)
        shares = [(request, 1) for request in decoding]
        shares += self._prompt_shares(prompts, self._tokens - len(plain) - len(decoding))
        self._drafting.draft(decoding, self._tokens - sum(tokens for _, tokens in shares))
        return plain, shares

    def _grow(self) -> None:
        """Give a block to each decoding request whose blocks are full; most have room for one more token."""
        running, full = self._roster.running, self._roster.pool.full
        for request in [request for request in running.values() if full(request)]:
            # One that grew may have preempted a later one of the list.
            if request.id in running and request.behind == 1 and self._may_decode(request):
                self._roster.grow(request)

    def _may_decode(self, request: Request) -> bool:
        """Whether the next chunk of a request that is one token behind may be planned now."""
        if not request.promised:
            return not request.awaits_mask
        # Some wait for their draws in flight. Behind drafts no chunk can be planned, even if the load has ended all
        # drafting meanwhile.
        return not (request.search is not None or request.drafts or self._drafting.allows(request))

    def _prompt_shares(self, running: Sequence[Request], budget: int) -> list[tuple[Request, int]]:
        """Deal out `budget` tokens among the running prompts, and waiting ones, which are admitted while it lasts."""
        roster = self._roster
        # A full queue costs a decoding step nothing while nobody can be admitted.
        waiting = [] if roster.full else [*filter(self._inspection_turns.admits, roster.waiting.values())]
        if not budget or not (running or waiting):
            return []
        prompts = sorted([*running, *waiting], key=lambda request: (request.behind, request.arrival))
        most = self._inspection_turns.most
        by_age = sorted(prompts, key=lambda request: request.arrival)
        oldest = next(filter(roster.may_run, by_age), None)
        if oldest is None:
            return []
        shares: dict[Request, int] = {}
        # If there are no blocks for the oldest prompt, no other may take any.
        admitting = roster.admit(oldest)
        if admitting:
            shares[oldest] = min(most(oldest), max(1, budget // OLDEST_SHARE))
            budget -= shares[oldest]
        for request in prompts:
            if not budget:
                break
            if request.id in roster.waiting and not (admitting and roster.may_run(request)):
                continue
            if not roster.admit(request):
                admitting = False
                continue
            more = min(most(request) - shares.get(request, 0), budget)
            if more:
                shares[request] = shares.get(request, 0) + more
                budget -= more
        return [*shares.items()]
