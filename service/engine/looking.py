"""Turns of the requests that look inside (lookers), so that they delay the other requests only a little.

All requests of a step wait for what one of them looks at: a logit lens on one token takes as long as several tokens.
Lookers therefore take turns, one in each step. After a look nobody looks until the others have been given back the time
that it took. If a quarter of all requests look, looks take an eighth of the time: half of their share (`SHARE`). The
other half is left to the processes that write down what was seen, which need the same cores. Where all requests look,
none of them waits.
"""

from bisect import bisect_left

from model.contract import Chunk
from service.engine.request import Request
from service.engine.roster import Roster
from service.engine.steps import Step

SHARE = 0.5
"""Time that looks may take, as a fraction of the lookers' part of all requests."""
NEWEST_SHARE = 0.25
"""Weight of a newly measured duration in the moving average of usual ones."""


class Looking:
    """Chooses whose turn it is, by measured durations of steps with and without looks."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._owed = 0.0
        """Seconds that looks have taken from the others and that are not given back yet."""
        self._usual: float | None = None
        """Usual seconds of a step in which all requests decode and none looks; None until there was one."""
        self._position: float | None = None
        """Seconds by which a position that is looked at usually lengthens a step; None until one was measured."""
        self._looked = False
        """Whether a request looked in the newest step that has landed."""
        self._turns = 0
        self._free = True
        """Whether all may look in the next step."""
        self._chosen: Request | None = None
        """The one request that may look in the next step, where not all may; None: none may."""

    def begin(self, before: Step | None) -> None:
        """Choose who may look in the next step; `before` is the step in flight, if there is one."""
        lookers, roster = self._roster.lookers, self._roster
        self._free = not lookers or len(roster.running) + len(roster.waiting) == len(lookers)
        self._chosen = None
        measured = self._usual is not None and self._position is not None
        if self._free or (self._owed > 0 if measured else self._looked) or (before is not None and looks(before)):
            return
        able = [request for request in lookers.values() if self._able(request)]
        self._chosen = min(able, key=lambda request: (request.turn, request.arrival), default=None)
        if self._chosen is not None:
            self._turns += 1
            self._chosen.turn = self._turns

    @property
    def holds_back(self) -> bool:
        """Whether some who look may have no part in the next step."""
        return not self._free

    def release(self) -> None:
        """Let all look in the next step, since nobody else has a part in it."""
        self._free = True

    def admits(self, request: Request) -> bool:
        """Whether a request may have a part in the next step."""
        return self._free or not request.looks or request is self._chosen

    def most(self, request: Request) -> int:
        """Limit of a request's tokens in the next step: a long look at a prompt is cut, lest the step stall."""
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
        looked = [_positions(chunk) for chunk in step.plan.others]
        positions = sum(looked)
        self._looked = positions > 0
        decodes = all(count or len(chunk.tokens) == 1 for count, chunk in zip(looked, step.plan.others, strict=True))
        if decodes and not positions:
            self._usual = _mean(self._usual, seconds)
        elif decodes and self._usual is not None and (step.plain or 0 in looked):
            self._position = _mean(self._position, max(0.0, seconds - self._usual) / positions)
        everybody, lookers = len(self._roster.running) + len(self._roster.waiting), len(self._roster.lookers)
        part = SHARE * lookers / everybody if lookers else 1.0
        taken = min(seconds, positions * (self._position or 0.0))
        self._owed = max(0.0, self._owed + taken - part * (seconds - taken))

    def _able(self, request: Request) -> bool:
        """Whether a request could have a part in the next step."""
        if request.id in self._roster.running:
            return request.behind > 0 and not request.awaits_mask
        room = not self._roster.full and self._roster.pool.available > len(self._roster.running)
        return room and self._roster.may_run(request)


def looks(step: Step) -> bool:
    """Whether a request of a step looks inside."""
    return any(_positions(chunk) for chunk in step.plan.others)


def _positions(chunk: Chunk) -> int:
    """The number of positions that are looked at in a chunk, trials counted as such."""
    return (0 if chunk.inspect is None else len(chunk.inspect.positions)) + len(chunk.trials)


def _mean(usual: float | None, newest: float) -> float:
    return newest if usual is None else usual + NEWEST_SHARE * (newest - usual)
