"""The shortest ways found to end a text that follows a grammar, so that it is whole when its tokens run out.

It knows matchers and tokens; it does not know requests.
"""

from collections.abc import Iterator, Sequence

from llguidance import LLMatcher

WATCHED = 256
"""Number of tokens before max_tokens in which a text is kept short enough to be ended."""
_NODES = 200
"""Number of places in the grammar that a search visits for each bound on the closing's length."""
_TEXTS = '"}]} "}] "}} "]} "} "] " }} ]] } ] , ": : 0 1 "" {} [] null true false { [ -'.split(" ")
"""Texts that end JSON's values or begin short ones, in the order in which they are tried."""
_OTHERS = 16
"""Number of other tokens to try where none of `_TEXTS` may come: half are the shortest, half the longest."""


def closing_after(matcher: LLMatcher, token: int, closing: Sequence[int], most: int, end: int) -> Sequence[int] | None:
    """The rest of a closing after one more token, in at most `most` tokens; None if it does not go on there.

    `closing` is one before the token, and `end` is a token that ends a completion. The matcher stays where it is. It
    takes a microsecond.
    """
    rest = closing[1:] if closing and closing[0] == token else closing
    if len(rest) > most:
        return None
    text = [token, *rest, end]
    return rest if rest is not closing or matcher.validate_tokens(text) == len(text) else None


class Closings:
    """Finds closings: tokens after which a text may end. They are short, but not always the shortest ones."""

    def __init__(self, spelt: Sequence[bytes], ends: Sequence[int]) -> None:
        """`spelt` has the bytes of each token; `ends` are the tokens that end a completion."""
        self._by_length = sorted(
            (token for token, text in enumerate(spelt) if text.strip() and token not in ends),
            key=lambda token: len(spelt[token]),
        )
        known = {spelt[token]: token for token in reversed(self._by_length)}
        self.first = [known[text.encode()] for text in _TEXTS if text.encode() in known]
        """Tokens that may end a part of a text, or begin a short one."""

    def find(self, matcher: LLMatcher, most: int) -> list[int] | None:
        """A closing of at most `most` tokens; None if none is found. The matcher is left as it was."""
        bound = min(1, most)
        while True:
            nodes = iter(range(_NODES))
            if (found := self._within(matcher, bound, nodes)) is not None:
                return found
            if bound == most:
                return None
            bound = min(2 * bound, most)

    def _within(self, matcher: LLMatcher, most: int, nodes: Iterator[int]) -> list[int] | None:
        if matcher.is_accepting():
            return []
        if most == 0 or next(nodes, None) is None or matcher.is_error():
            return None
        forced = matcher.compute_ff_tokens()
        for tokens in [forced[:most]] if forced else ([token] for token in self._candidates(matcher)):
            if not matcher.consume_tokens(tokens):
                return None
            rest = self._within(matcher, most - len(tokens), nodes)
            matcher.rollback(len(tokens))
            if rest is not None:
                return [*tokens, *rest]
        return None

    def _candidates(self, matcher: LLMatcher) -> Iterator[int]:
        """Tokens that may come next, those that are likely to end the text first."""
        found = False
        for token in self.first:
            if matcher.validate_tokens([token]):
                found = True
                yield token
        if not found:
            mask = matcher.compute_bitmask()
            allowed = [token for token in self._by_length if mask[token // 8] >> token % 8 & 1]
            yield from dict.fromkeys([*allowed[: _OTHERS // 2], *allowed[: -_OTHERS // 2 - 1 : -1]])
