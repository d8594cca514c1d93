"""Finds stop strings in text that arrives in pieces, and holds back text that may yet become one."""

from collections.abc import Sequence


class StopMatcher:
    """Passes text through until one of several strings appears in it.

    The string that is complete first wins; among several that end at the same character, the longest wins. The outcome
    therefore does not depend on how the text is cut into pieces.
    """

    def __init__(self, strings: Sequence[str], include: bool = False) -> None:
        """`strings` must not be empty strings; with `include`, the one that is found stays in the text."""
        self.stopped: str | None = None
        self._searches = [_Search(string) for string in sorted(strings, key=len, reverse=True)]
        self._include = include
        self._held = ""

    def push(self, text: str) -> str:
        """The text that now certainly comes before any stop string; empty once one is found."""
        if self.stopped is not None or not self._searches:
            return text if self.stopped is None else ""
        for position, character in enumerate(text):
            complete = [search.string for search in self._searches if search.advance(character)]
            if complete:
                self.stopped = complete[0]
                seen = self._held + text[: position + 1]
                self._held = ""
                return seen if self._include else seen.removesuffix(self.stopped)
        seen = self._held + text
        certain = len(seen) - max(search.matched for search in self._searches)
        self._held = seen[certain:]
        return seen[:certain]

    def stop(self, string: str) -> str:
        """The rest of the text, when the token of `string` ends it although no text shows it."""
        self.stopped = string
        held, self._held = self._held, ""
        return held + string if self._include else held

    def finish(self) -> str:
        """The text held back so far, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held


class _Search:
    """The automaton of one string: how much of its beginning the text ends with (Knuth, Morris and Pratt, 1977)."""

    def __init__(self, string: str) -> None:
        self.string = string
        self.matched = 0
        self._borders = _borders(string)

    def advance(self, character: str) -> bool:
        """Take the next character; True if the text now ends with the whole string."""
        while self.matched and self.string[self.matched] != character:
            self.matched = self._borders[self.matched - 1]
        self.matched += self.string[self.matched] == character
        return self.matched == len(self.string)


def _borders(string: str) -> list[int]:
    """For each beginning of the string, the length of the longest shorter beginning that it also ends with."""
    borders = [0]
    for character in string[1:]:
        border = borders[-1]
        while border and string[border] != character:
            border = borders[border - 1]
        borders.append(border + (string[border] == character))
    return borders
