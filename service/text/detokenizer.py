"""Turns a completion's tokens into text as they come: whole characters only, cut at the first stop string."""

import codecs
from collections.abc import Container, Sequence

from service.text.interface import Tokenizer
from service.text.stop import StopMatcher


class Detokenizer:
    """The text of one completion. It continues a prompt, so a leading space is part of it.

    The results of `push` and `finish`, joined, are `tokenizer.decode(tokens, continuation=True)` up to the first stop
    string. A stop string that contains the text of a special token is found where that token is, even if the text
    leaves such tokens out. The work for a token does not grow with the length of the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special: bool = True,
        min_tokens: int = 0,
        kept: Container[str] = (),
    ) -> None:
        """With `include_stop` the text ends with its stop string; `skip_special` leaves out special tokens.

        Special tokens that are spelt as one of `kept` stay in the text nevertheless.

        No stop string ends the text with its first `min_tokens` tokens.
        """
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._kept = kept
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = StopMatcher(stop, include_stop, across=list(filter(tokenizer.spells_special, stop)))
        self._unsearched = min_tokens

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stop.stopped

    def push(self, token: int) -> str:
        """The text that is certain with this token; empty while a character or a possible stop string is incomplete."""
        special = self._tokenizer.special_text(token) if self._skip_special else None
        if special is not None and special not in self._kept:
            return self._hide(special)
        self._count()
        return self._stop.push(self._characters.decode(self._tokenizer.token_bytes(token)))

    def end(self, token: int) -> str:
        """The rest of the text, when `token` ends the completion and is left out of the text."""
        special = self._tokenizer.special_text(token)
        text = "" if special is None else self._hide(special)
        return text if self._stop.stopped else text + self.finish()

    def finish(self) -> str:
        """The text held back so far, when the completion ends without a stop string."""
        return self._stop.push(self._characters.decode(b"", final=True)) + self._stop.finish()

    def _hide(self, special: str) -> str:
        self._count()
        incomplete, _ = self._characters.getstate()
        return self._stop.hide(special, incomplete.decode(errors="replace"))

    def _count(self) -> None:
        self._stop.searching = self._unsearched == 0
        self._unsearched = max(self._unsearched - 1, 0)
