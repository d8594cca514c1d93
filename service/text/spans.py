"""The characters of a text that each of its tokens spells, for every view of tokens that tells their places."""

import codecs
from collections.abc import Sequence
from typing import NamedTuple

from service.text.interface import Tokenizer


class PlacedTokens(NamedTuple):
    """Tokens, and where they are in the text that they spell."""

    text: str
    """The text, special tokens included, as `Tokenizer.decode` gives it."""
    spans: list[tuple[int, int]]
    """The first character that each token spells, and the one behind its last.

    Tokens that share a character, with some of its bytes each, have it in common; a token without bytes has none.
    """


def place_tokens(tokenizer: Tokenizer, tokens: Sequence[int]) -> PlacedTokens:
    """The places of all tokens of a whole text."""
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    place = _Place()
    spans = [place.pass_over(tokenizer.token_bytes(token)) for token in tokens]
    # A whole text lacks the space that SentencePiece puts before its first word.
    dropped = place.end() - len(text)
    return PlacedTokens(text, [(max(0, first - dropped), max(0, behind - dropped)) for first, behind in spans])


class _Place:
    """A place in UTF-8 text that is read byte by byte."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def pass_over(self, data: bytes) -> tuple[int, int]:
        """Go on behind these bytes; returns the characters that they are parts of."""
        if not data:
            return self._characters, self._characters
        return self._character(data[:1]), self._last(data[1:]) + 1

    def end(self) -> int:
        """The number of characters, those that are incomplete at the end included."""
        return self._characters + len(self._decoder.decode(b"", final=True))

    def _last(self, data: bytes) -> int:
        if data.isascii():
            self._characters += len(self._decoder.decode(data))
            return self._characters - (not self._decoder.getstate()[0])
        return max([self._character(bytes([byte])) for byte in data])

    def _character(self, byte: bytes) -> int:
        """The character that the next byte belongs to: the last one if it ends it, else the one that is not whole."""
        self._characters += len(self._decoder.decode(byte))
        incomplete, _ = self._decoder.getstate()
        return self._characters if incomplete else self._characters - 1
