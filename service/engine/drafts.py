"""Drafts of the tokens to come: looked up in the request's own tokens, or left to the runner's draft model.

A look-up finds what followed the same few tokens before: text that quotes its prompt (summaries, edits, code) repeats
long runs of tokens. Source: Saxena, "Prompt Lookup Decoding", 2023. The draws decide, so a draft never changes what is
generated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.contract import INVALID_TOKEN
from service.engine.request import Request

WIDTH = 3
"""Number of tokens that must have occurred before; fewer guess wrong too often."""

Guess = Callable[[Request, int], Sequence[int]]
"""Guesses up to so many of the tokens that will follow a request's known ones, all of which are computed but one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPolicy:
    """Who makes drafts, how many, and when."""

    guess: Guess
    tokens: int
    """Drafts of a request in a step at most."""
    running: int
    """Requests that may own blocks while there are drafts; with more there are none."""


def look_up(request: Request, most: int) -> Sequence[int]:
    """The up to `most` tokens that followed the newest earlier occurrence of a request's last tokens."""
    known = request.known
    if known <= WIDTH:
        return ()
    places = request.places
    # An occurrence is noted under its tokens once a token has followed it.
    for stop in range(max(request.placed, WIDTH), known):
        places[tuple(request.tokens(stop - WIDTH, stop))] = stop
    request.placed = known
    found = places.get(tuple(request.tokens(known - WIDTH, known)))
    return () if found is None else request.tokens(found, min(found + most, known))


def leave_open(request: Request, most: int) -> Sequence[int]:
    """Leave `most` drafts to the runner, which needs a draft model for them."""
    return [INVALID_TOKEN] * most


NO_DRAFTS = DraftPolicy(guess=look_up, tokens=0, running=0)
