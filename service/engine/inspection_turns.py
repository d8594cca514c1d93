"""Turns of the requests that look inside, so that they delay the other requests only a little.

All requests of a step wait for what is inspected of one of them: a logit lens on one token takes as long as several
tokens. Requests that look inside therefore take turns, one in each step. After an inspection there is no other until
the others have been given back the time that it took. If a quarter of all requests look inside, inspections take an
eighth of the time: half of their share (`SHARE`). The other half is left to the processes that write answers, which
need the same cores. Where all requests look inside, none of them waits.
"""

from bisect import bisect_left

from model.contract import Chunk
from service.engine.request import Request
from service.engine.roster import Roster
from service.engine.steps import Step

SHARE = 0.5
"""Time that inspections may take, as a fraction of the part that their requests are of all."""
NEWEST_SHARE = 0.25
"""Weight of a newly measured duration in the moving average of usual ones."""


class InspectionTurns:
    """Chooses whose turn it is, by measured durations of steps with and without inspections."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._owed = 0.0
        """Seconds that inspections have taken from the others and that are not given back yet."""
        self._usual: float | None = None
        """Usual seconds of a step in which all requests decode and none looks inside; None until there was one."""
        self._position: float | None = None
        """Seconds by which an inspected position usually lengthens a step; None until one was measured."""
        self._inspected = False
        """Whether a request looked inside in the newest step that has landed."""
        self._turns = 0
        self._free = True
        """Whether all may look inside in the next step."""
        self._chosen: Request | None = None
        """The one request that may look inside in the next step, where not all may; None: none may."""

    def begin(self, before: Step | None) -> None:
        """Choose who may look inside in the next step; `before` is the step in flight, if there is one."""
        inspecting, roster = self._roster.inspecting, self._roster
        self._free = not inspecting or len(roster.running) + len(roster.waiting) == len(inspecting)
        self._chosen = None
        measured = self._usual is not None and self._position is not None
        if self._free or (self._owed > 0 if measured else self._inspected) or (before is not None and inspects(before)):
            return
        able = [request for request in inspecting.values() if self._able(request)]
        self._chosen = min(able, key=lambda request: (request.turn, request.arrival), default=None)
        if self._chosen is not None:
            self._turns += 1
            self._chosen.turn = self._turns

    @property
    def holds_back(self) -> bool:
        """Whether some who look inside may have no part in the next step."""
        return not self._free

    def release(self) -> None:
        """Let all look inside in the next step, since nobody else has a part in it."""
        self._free = True

    def admits(self, request: Request) -> bool:
        """Whether a request may have a part in the next step."""
        return self._free or not request.inspects or request is self._chosen

    def most(self, request: Request) -> int:
        """Limit of a request's tokens in the next step: a long inspection of a prompt is cut, lest the step stall."""
        asked = request.wanted.inspect
        if self._free or asked is None:
            return request.behind
        begin = max(request.computed, request.collected)
        later = asked.positions[bisect_left(asked.positions, begin) :]
        count = 1
        if self._usual is not None and self._position:
            count = max(1, int(self._usual / self._position))
        return later[count] - request.computed if len(later) > count else request.behind

    def land(self, step: Step, seconds: float) -> None:
        """Note that a step took so many seconds."""
        inspected = [_positions(chunk) for chunk in step.plan.others]
        positions = sum(inspected)
        self._inspected = positions > 0
        decodes = all(count or len(chunk.tokens) == 1 for count, chunk in zip(inspected, step.plan.others, strict=True))
        if decodes and not positions:
            self._usual = _mean(self._usual, seconds)
        elif decodes and self._usual is not None and (step.plain or 0 in inspected):
            self._position = _mean(self._position, max(0.0, seconds - self._usual) / positions)
        everybody, inspecting = len(self._roster.running) + len(self._roster.waiting), len(self._roster.inspecting)
        part = SHARE * inspecting / everybody if inspecting else 1.0
        taken = min(seconds, positions * (self._position or 0.0))
        self._owed = max(0.0, self._owed + taken - part * (seconds - taken))

    def _able(self, request: Request) -> bool:
        """Whether a request could have a part in the next step."""
        if request.id in self._roster.running:
            return request.behind > 0 and not request.awaits_mask
        room = not self._roster.full and self._roster.pool.available > len(self._roster.running)
        return room and self._roster.may_run(request)


def inspects(step: Step) -> bool:
    """Whether a request of a step looks inside."""
    return any(_positions(chunk) for chunk in step.plan.others)


def _positions(chunk: Chunk) -> int:
    """The number of positions that are inspected in a chunk, trials counted as such."""
    return (0 if chunk.inspect is None else len(chunk.inspect.positions)) + len(chunk.trials)


def _mean(usual: float | None, newest: float) -> float:
    return newest if usual is None else usual + NEWEST_SHARE * (newest - usual)
