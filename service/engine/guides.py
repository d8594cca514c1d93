"""Guides: the place of each request in its grammar, moved on by what it draws.

The moves are made in threads beside the engine's loop, many in one go: to hand one to a thread takes longer than to
make it.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ALL_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

from service.engine.closings import WATCHED
from service.engine.grammar_places import Masks, Place, advance, weigh
from service.engine.grammar_source import GrammarError

HEAVY_SECONDS = 0.0005
"""Time of a move from which on its request's moves are made apart from others, which would wait for them."""
_TOGETHER = 64
"""Moves that are made in one go at most."""


class Move:
    """A guide's way to its next place. Another thread makes it, in a `job` together with other moves."""

    __slots__ = ("error", "heavy", "job", "make", "place")

    def __init__(self, make: Callable[[Masks], Place], heavy: bool) -> None:
        """`heavy` moves are made apart from others."""
        self.make = make
        self.heavy = heavy
        """Whether it may take long, or did."""
        self.job: Future[None] | None = None
        """None until a thread was asked to make it."""
        self.place: Place | None = None
        """None until it is made, and for ever if it fails."""
        self.error: BaseException | None = None


class Movers:
    """The threads that make moves."""

    def __init__(self, width: int) -> None:
        """`width` is the number of tokens in a mask."""
        self._threads = ThreadPoolExecutor(os.cpu_count(), "mask")
        self._width = width
        self._moves: list[Move] = []

    def add(self, make: Callable[[Masks], Place], heavy: bool) -> Move:
        """A move that is made once `begin` is called. `heavy` is as in `Move`."""
        move = Move(make, heavy)
        self._moves.append(move)
        return move

    def begin(self) -> None:
        """Have threads make the moves that were added since the last call."""
        if not self._moves:
            return
        light = [move for move in self._moves if not move.heavy]
        groups = [[move] for move in self._moves if move.heavy]
        groups += [light[first : first + _TOGETHER] for first in range(0, len(light), _TOGETHER)]
        self._moves = []
        for group in groups:
            job = self._threads.submit(_make, group, self._width)
            for move in group:
                move.job = job


def _make(moves: Sequence[Move], width: int) -> None:
    masks = Masks(width)
    began = time.perf_counter()
    for move in moves:
        try:
            move.place = move.make(masks)
        except BaseException as error:  # A panic of the package is no Exception.
            move.error = error
        ended = time.perf_counter()
        move.heavy = ended - began > HEAVY_SECONDS
        began = ended


class Guide:
    """The place of one request in its grammar.

    Nothing here waits for threads: whoever draws has waited until it is `ready`.
    """

    def __init__(self, field: str, start: "Future[Place]", movers: Movers) -> None:
        """`field` is the one of `Grammar`; `start` is the beginning of the grammar, perhaps yet to be compiled."""
        self.field = field
        self._start = start
        self._move: Move | None = None
        """The newest move; None at the beginning."""
        self._movers = movers
        self._drawn: list[int] = []
        self._closing: Sequence[int] | None = None
        """The closing behind the newest token, if it is known."""
        self._left: int | None = None
        """Number of tokens that may follow the newest one; None where its text may be cut, or has ended."""

    @property
    def pending(self) -> "Future[Any] | None":
        """The newest work in the threads, if it is not done."""
        if self._move is None:
            return None if self._start.done() else self._start
        return self._move.job if self._move.place is None and self._move.error is None else None

    @property
    def ready(self) -> bool:
        """Whether the mask of the next draw is ready."""
        if self._move is not None:
            return self._move.place is not None
        return self._start.done() and self.failure is None

    @property
    def failure(self) -> Exception | None:
        """The reason why there will be no mask: a GrammarError, or a bug."""
        error = self._error()
        if error is None or isinstance(error, Exception):
            return error
        return GrammarError("the grammar cannot be followed")  # A panic of the package is no Exception.

    def _error(self) -> BaseException | None:
        if self._move is not None:
            return self._move.error
        if not self._start.done():
            return None
        try:
            return self._start.exception()
        except CancelledError:
            return GrammarError("the server has too many grammars to compile")

    @property
    def mask(self) -> bytes:
        """The tokens that the next draw may give, as in `Draw.allowed`, once it is ready. Raises as `failure` says."""
        return self._place.mask

    @property
    def _place(self) -> Place:
        """The newest place, which must be made. Raises as `failure` says."""
        if self.failure is not None:
            raise self.failure
        place = self._start.result() if self._move is None else self._move.place
        assert place is not None, "the newest place is still being made"
        return place

    def keeps(self, token: int, left: int) -> bool:
        """Whether a drawn token stays: the text can be ended within `left` more tokens, or could not be before either.

        If it does not stay, it is to be drawn again: a thread finds out whether the text can be ended after it. If not,
        the next draw gives the token that leads to the end instead.
        """
        place = self._place
        self._closing, self._left = None, None
        if place.open or token in place.grammar.tokens.ends:
            return True
        self._left = left
        self._closing = place.closing_after(token, left)
        if self._closing is None and left < WATCHED:
            self._go(partial(weigh, place, token, left), heavy=True)
            return False
        return True

    def advance(self, tokens: Sequence[int]) -> None:
        """Move on by drawn tokens, to the mask of the draw after them, once the movers begin."""
        place = self._place
        # No thread reads the list meanwhile: the newest place is made.
        self._drawn += tokens
        self._go(partial(advance, place, tokens, self._drawn, self._closing, self._left))

    def _go(self, make: Callable[[Masks], Place], *, heavy: bool = False) -> None:
        self._move = self._movers.add(make, heavy or (self._move is not None and self._move.heavy))


def wait_for_masks(guides: Sequence[Guide], seconds: float, which: str = ALL_COMPLETED) -> None:
    """Wait until the threads have done what they do for these guides, all or the first of it, for at most `seconds`."""
    if pending := {job for guide in guides if (job := guide.pending) is not None}:
        wait(pending, timeout=seconds, return_when=which)
