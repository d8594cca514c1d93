"""Finds stop strings in text that arrives in pieces, and holds back text that may yet become one."""

from collections import deque
from collections.abc import Container, Sequence


class StopMatcher:
    """Passes text through until one of several strings appears in it.

    The string that is complete first wins; among several that end at the same character, the longest wins. The outcome
    therefore does not depend on how the text is cut into pieces. Some parts of the text may be hidden: they are not
    passed on, and only some strings are looked for in the text with them.
    """

    def __init__(self, strings: Sequence[str], include: bool = False, across: Container[str] = ()) -> None:
        """`strings` must not be empty strings; with `include`, the one that is found ends the text.

        The strings in `across` are looked for in the text with its hidden parts, the others in the text without them.
        """
        self.stopped: str | None = None
        self.searching = True
        """Whether a string that is complete ends the text; until then, each is passed on as if it were none."""
        self._searches = [_Search(string, string in across) for string in sorted(strings, key=len, reverse=True)]
        self._include = include
        self._held = ""
        # Which of the last characters, hidden ones included, are shown: as many as a search across hidden parts needs.
        self._shown: deque[bool] = deque(
            maxlen=max((len(search.string) for search in self._searches if search.sees_hidden), default=0)
        )

    def push(self, text: str) -> str:
        """The text that now certainly comes before any stop string; empty once one is found."""
        if self.stopped is not None or not self._searches:
            return text if self.stopped is None else ""
        for position, character in enumerate(text):
            self._shown.append(True)
            if found := self._advance(self._searches, character):
                self._held += text[: position + 1]
                return self._end(found)
        self._held += text
        return self._release()

    def hide(self, text: str, broken: str = "") -> str:
        """Take a text that is not passed on; the result is that of `push`.

        `broken` is the text of an incomplete character before it, which `push` gets only when it is complete. No string
        is found across it, and it is passed on if the completion ends here.
        """
        across = [search for search in self._searches if search.sees_hidden]
        if self.stopped is not None or not across:
            return ""
        for search in across if broken else ():
            search.matched = 0
        for character in text:
            self._shown.append(False)
            if found := self._advance(across, character):
                self._held += broken
                return self._end(found)
        return self._release()

    def _advance(self, searches: Sequence["_Search"], character: str) -> "_Search | None":
        complete = [search for search in searches if search.advance(character)]
        return complete[0] if complete and self.searching else None

    def _end(self, found: "_Search") -> str:
        self.stopped = found.string
        before = len(self._held) - self._length(found, len(found.string))
        text, self._held = self._held[:before], ""
        return text + found.string if self._include else text

    def _release(self) -> str:
        certain = len(self._held) - max(self._length(search, search.matched) for search in self._searches)
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _length(self, search: "_Search", matched: int) -> int:
        """How many characters of the shown text the last `matched` ones are, as the search sees them."""
        return sum(list(self._shown)[-matched:]) if search.sees_hidden and matched else matched

    def finish(self) -> str:
        """The text held back so far, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held


class _Search:
    """The automaton of one string: how much of its beginning the text ends with (Knuth, Morris and Pratt, 1977)."""

    def __init__(self, string: str, sees_hidden: bool) -> None:
        self.string = string
        self.sees_hidden = sees_hidden
        """Whether the text is taken with its hidden parts."""
        self.matched = 0
        """Characters of the string's beginning, always less than the whole."""
        self._borders = _borders(string)

    def advance(self, character: str) -> bool:
        """Take the next character; True if the text now ends with the whole string."""
        while self.matched and self.string[self.matched] != character:
            self.matched = self._borders[self.matched - 1]
        self.matched += self.string[self.matched] == character
        complete = self.matched == len(self.string)
        if complete:
            self.matched = self._borders[-1]
        return complete


def _borders(string: str) -> list[int]:
    """For each beginning of the string, the length of the longest shorter beginning that it also ends with."""
    borders = [0]
    for character in string[1:]:
        border = borders[-1]
        while border and string[border] != character:
            border = borders[border - 1]
        borders.append(border + (string[border] == character))
    return borders
