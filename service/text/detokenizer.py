"""Turns a completion's tokens into text as they come: whole characters only, cut at the first stop string."""

import codecs
from collections.abc import Sequence

from service.text.interface import Tokenizer
from service.text.stop import StopMatcher


class Detokenizer:
    """The text of one completion. It continues a prompt, so a leading space is part of it.

    The results of `push` and `finish`, joined, are `tokenizer.decode(tokens, continuation=True)` up to the first stop
    string. A stop string that is a special token ends the text too, even where the text leaves such tokens out. The
    work for a token does not grow with the length of the text.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), include_stop: bool = False, skip_special: bool = True
    ) -> None:
        """With `include_stop` the text ends with its stop string; `skip_special` leaves out special tokens."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = StopMatcher(stop, include_stop)
        spelt = {tokenizer.special_token(string): string for string in stop} if skip_special else {}
        self._hidden_stops = {token: string for token, string in spelt.items() if token is not None}
        """Stop strings that are special tokens, by token; no text will show them."""

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stop.stopped

    def push(self, token: int) -> str:
        """The text that is certain with this token; empty while a character or a possible stop string is incomplete."""
        if self._skip_special and self._tokenizer.is_special(token):
            stop = self._hidden_stops.get(token)
            return "" if stop is None else self._end_with(stop)
        return self._stop.push(self._characters.decode(self._tokenizer.token_bytes(token)))

    def _end_with(self, stop: str) -> str:
        text = self._stop.push(self._characters.decode(b"", final=True))
        return text if self._stop.stopped else text + self._stop.stop(stop)

    def finish(self) -> str:
        """The text held back so far, when the completion ends without a stop string."""
        return self._stop.push(self._characters.decode(b"", final=True)) + self._stop.finish()
