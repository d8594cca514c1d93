"""Places in a grammar: the mask of the tokens that may come next, and the places that drawn tokens lead to.

Nothing here knows requests or threads. A place's matcher moves on with it, so a place is of use only until its text has
moved on, unless other texts begin there too.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from ctypes import addressof, create_string_buffer
from dataclasses import dataclass, replace
from itertools import accumulate
from posixpath import commonprefix

from llguidance import LLMatcher

from service.engine.closings import closing_after
from service.engine.grammar_source import GrammarError, check, compiled
from service.engine.grammar_tokens import GrammarTokens

_JOINED = 4
"""Tokens of a closing among which a token that leaves its way may join it."""


@dataclass(slots=True)
class Compiled:
    """A grammar in llguidance's form, for the tokens of a tokenizer."""

    source: str
    tokens: GrammarTokens
    seconds: float
    """Time in which it was compiled."""
    worn: bool = False
    """Whether its matchers cannot go on. All copies of a matcher fill one table of states, which is bounded."""


@dataclass(slots=True)  # Not frozen: a step makes one for each request, and freezing takes most of the time.
class Place:
    """A place in a grammar, and the mask of the tokens that may come next."""

    grammar: Compiled
    matcher: LLMatcher
    mask: bytes
    beginning: bool = False
    """Whether other requests begin here, so that the matcher must be copied before it moves on."""
    alone: bool = False
    """Whether the matcher has a table of states of its own."""
    closing: Sequence[int] | None = None
    """A closing from here, if one is known; once few tokens are left, one is needed."""
    approved: tuple[int, Sequence[int]] | None = None
    """A token that may come next, and the closing after it."""
    open: bool = False
    """Whether no closing was found when one was first needed, so that the text may be cut."""

    def closing_after(self, token: int, left: int) -> Sequence[int] | None:
        """A closing of at most `left` tokens after one more token, if one follows at once from what is known."""
        if self.approved is not None and self.approved[0] == token:
            return self.approved[1]
        if self.closing is None:
            return None
        tokens = self.grammar.tokens
        after = closing_after(self.matcher, token, self.closing, left, tokens.eos_token_id)
        return self._rejoined(token, left) if after is None else after

    def _rejoined(self, token: int, left: int) -> Sequence[int] | None:
        """The closing behind a token that leaves its way, if there is one that goes on like it."""
        end = self.grammar.tokens.eos_token_id
        for rest in self._detours(token):
            spelt = [token, *rest, end]
            if len(rest) <= left and self.matcher.validate_tokens(spelt) == len(spelt):
                return rest
        return None

    def _detours(self, token: int) -> Iterator[Sequence[int]]:
        """Tokens that may lead from behind one that leaves the closing's way to its end.

        A model may draw ` ",` where the closing has `",`, or `{` and a new line where it begins with `{"`: the closing
        goes on from there. Or it begins a string or a list that the closing has not: that must be ended first.
        """
        assert self.closing is not None
        tokens, closing = self.grammar.tokens, self.closing
        head = [tokens.tokens[other] for other in closing[:_JOINED]]
        text, stops = b"".join(head), [*accumulate(map(len, head))]
        for join in _joins(text, tokens.tokens[token]):
            index = bisect_left(stops, join)
            yield [*tokens.spell(text[join : stops[index]]), *closing[index + 1 :]]
        for first in tokens.closings.first:
            yield [first, *closing]
            yield [first, first, *closing]  # An empty string, where one must come.


class Masks:
    """Reads the masks of matchers, one after the other, by way of the same memory.

    The package takes several times as long for a mask in memory of its own.
    """

    def __init__(self, width: int) -> None:
        """`width` is the number of tokens in a mask."""
        self._room = create_string_buffer(-(-width // 32) * 4)
        self._address = addressof(self._room)

    def read(self, matcher: LLMatcher) -> bytes:
        """The tokens that may come next, as in `Draw.allowed`. Raises GrammarError."""
        matcher.unsafe_compute_mask_ptr(self._address, len(self._room))
        check(matcher)
        return self._room.raw

    def some(self, tokens: Sequence[int]) -> bytes:
        """The mask of a few tokens."""
        mask = bytearray(len(self._room))
        for token in tokens:
            mask[token // 8] |= 1 << token % 8
        return bytes(mask)


def advance(
    place: Place,
    tokens: Sequence[int],
    drawn: Sequence[int],
    closing: Sequence[int] | None,
    left: int | None,
    masks: Masks,
) -> Place:
    """The place after newly drawn `tokens`, the last of all that were `drawn`. Raises GrammarError.

    `closing` leads from there to an end of the text; if it takes all of the `left` tokens, no other one may follow.
    """
    moved = _moved(place, tokens, drawn, masks)
    if closing and len(closing) == left:
        moved.mask = masks.some(closing[:1])
    moved.closing, moved.open = closing, place.open
    return moved


def _moved(place: Place, tokens: Sequence[int], drawn: Sequence[int], masks: Masks) -> Place:
    try:
        matcher = place.matcher.deep_copy() if place.beginning else place.matcher
        return Place(place.grammar, matcher, _mask_after(matcher, tokens, masks), alone=place.alone)
    except GrammarError:
        if place.alone:
            raise
    # Other requests of the same grammar may have filled the states: only with states of its own is a failure its own.
    place.grammar.worn = True
    matcher = compiled(place.grammar.source, place.grammar.tokens.tokenizer)
    return Place(place.grammar, matcher, _mask_after(matcher, drawn, masks), alone=True)


def weigh(place: Place, token: int, left: int, masks: Masks) -> Place:
    """The same place, when it is known whether the text can be ended within `left` tokens after this one.

    If it cannot, while it could be before, only the token that leads to the end may come next.
    """
    tokens = place.grammar.tokens
    closing = place.closing
    if closing is None or len(closing) > left + 1:
        closing = tokens.closings.find(place.matcher.deep_copy(), left + 1)
    if closing is None:
        return replace(place, open=True)
    after = closing_after(place.matcher, token, closing, left, tokens.eos_token_id)
    matcher = place.matcher.deep_copy()
    if after is None and matcher.consume_token(token):
        after = tokens.closings.find(matcher, left)
    if after is not None:
        return replace(place, closing=closing, approved=(token, after))
    return replace(place, closing=closing, mask=masks.some(closing[:1] or tokens.ends))


def _joins(text: bytes, other: bytes) -> list[int]:
    """Places in a text from which it may go on behind another one: behind the other's ends, or a beginning of both."""
    ends = [whole[begin:] for whole in (other, other.rstrip()) for begin in range(len(whole))]
    found = [text.find(end) + len(end) for end in ends if end in text]
    begun = len(commonprefix([text, other]))
    return [*dict.fromkeys([*found, begun] if begun else found)]


def _mask_after(matcher: LLMatcher, tokens: Sequence[int], masks: Masks) -> bytes:
    """Move a matcher on by drawn tokens; returns the mask of the next draw."""
    for token in tokens:
        matcher.consume_token(token)
        check(matcher)
    return masks.read(matcher)
