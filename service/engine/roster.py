"""The roster: the requests that have not ended, which of them run, and what a running one has: blocks and a row.

It knows neither steps nor the reasons why requests end.
"""

from collections.abc import Iterator
from itertools import chain

from service.engine.blocks import BlockPool
from service.engine.callers import CallerLimits, Callers
from service.engine.leaders import Leaders
from service.engine.messages import Counters
from service.engine.request import Request


class Roster:
    """Moves requests between waiting and running. A running one owns the blocks of its tokens; a waiting one, which is
    new or was preempted, owns none.

    A beam that waits for the other beams of its search does neither, and is not on the roster.
    """

    def __init__(self, pool: BlockPool, counters: Counters, max_running: int, caller_limits: CallerLimits) -> None:
        """`max_running` is the most requests that run at the same time."""
        self.pool = pool
        self.callers = Callers(caller_limits, max_running)
        self.leaders = Leaders(pool.block_size)
        self.waiting: dict[int, Request] = {}
        self.running: dict[int, Request] = {}
        self.inspecting: dict[int, Request] = {}
        """The waiting and running requests that look inside."""
        self._counters = counters
        self._rows = list(range(max_running))
        """Rows of the runner's sampling state that no running request has."""

    def __iter__(self) -> Iterator[Request]:
        return chain(self.waiting.values(), self.running.values())

    @property
    def full(self) -> bool:
        """Whether as many requests run as may."""
        return not self._rows

    @property
    def can_grow(self) -> bool:
        """Whether there are blocks for all tokens of the running requests, promised ones included."""
        # A request grows by one token from plan to plan, and so by one block at most.
        return len(self.running) <= self.pool.available or self.pool.can_grow(self.running.values())

    def wait(self, request: Request) -> None:
        """Queue a request that owns no blocks, and whose known tokens are to be computed or found."""
        request.computed = 0
        self.waiting[request.id] = request
        if request.inspects:
            self.inspecting[request.id] = request
        self.callers.wait(request.caller)

    def may_run(self, request: Request) -> bool:
        """Whether a request runs, or would if there were room: its mask is made, its caller is below the limit, and no
        leader computes for it.
        """
        if request.id in self.running:
            return True
        if request.awaits_mask or not self.callers.may_run(request.caller):
            return False
        return not self.leaders.worth_waiting_for(request, len(self.pool.match(request)))

    def admit(self, request: Request) -> bool:
        """Have a request run, with blocks for all its known tokens; False if it does not yet, and there is no room.

        One block for each running request stays in reserve: otherwise their growth would soon preempt the newcomer.
        """
        if request.id in self.running:
            return True
        if self.full or not self.pool.admit(request, reserve=len(self.running)):
            return False
        if request.cached_tokens is None:
            request.cached_tokens = request.computed
            self._counters.prefix_queries += len(request.prompt)
            self._counters.prefix_hits += request.computed
        del self.waiting[request.id]
        self.running[request.id] = request
        request.row, request.fresh, request.plain = self._rows.pop(), True, request.wants_tokens_alone
        self.callers.wait(request.caller, -1)
        self.callers.run(request.caller)
        if request.params.max_tokens:
            self.leaders.add(request)
        return True

    def grow(self, request: Request) -> None:
        """Find a block for the newest token of a running request.

        The newest requests are preempted for it, in the end itself: they lose their blocks, keep their output and wait
        again.
        """
        while request.id in self.running and not self.pool.grow(request):
            newest = max(self.running.values(), key=lambda request: request.arrival)
            self.leave(newest)
            self.wait(newest)
            self._counters.preemptions += 1

    def leave(self, request: Request) -> None:
        """Take a running request from the roster, and its row and blocks from the request."""
        del self.running[request.id]
        self._rows.append(request.row)
        self.callers.run(request.caller, -1)
        self.leaders.remove(request)
        self.pool.release(request)

    def end(self, request: Request, *, sound: bool = True) -> None:
        """End a request, wherever it is; blocks with unsound values are not found again."""
        request.ended = True
        self.inspecting.pop(request.id, None)
        if not sound:
            self.pool.discard(request)
        if request.id in self.running:
            self.leave(request)
        elif self.waiting.pop(request.id, None):
            self.callers.wait(request.caller, -1)
