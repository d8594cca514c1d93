"""A model's vocabulary as the package llguidance asks for it."""

from collections.abc import Collection
from typing import Protocol

from llguidance import LLTokenizer, TokenizerWrapper

from service.engine.closings import Closings
from service.engine.grammar_source import GrammarError


class Vocabulary(Protocol):
    """The tokens of a model, as a tokenizer knows them."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> Collection[int]: ...

    def token_bytes(self, token: int) -> bytes: ...

    def is_special(self, token: int) -> bool: ...

    def encode(self, text: str, *, add_special_tokens: bool, parse_special: bool) -> list[int]: ...


class GrammarTokens:
    """A vocabulary in the form that the package asks for, cut or padded to the width of the logits."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        """Raises GrammarError if no token ends a completion."""
        self.width = width
        self.tokens = [vocabulary.token_bytes(token) for token in range(width)]
        self.special_token_ids = [token for token in range(width) if vocabulary.is_special(token)]
        self.ends = _ends(vocabulary, width)
        self.eos_token_id = self.ends[0]
        self._vocabulary = vocabulary
        self._longest = max(map(len, self.tokens))
        self._ids = {spelt: token for token, spelt in enumerate(self.tokens) if not vocabulary.is_special(token)}
        self.closings = Closings(self.tokens, self.ends)
        self.tokenizer = LLTokenizer(TokenizerWrapper(self), n_vocab=width, eos_token=self.ends)

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of text that a grammar leaves no choice about; they spell exactly this text."""
        if isinstance(text, bytes):
            raise TypeError("text is a string")  # The package asks by trying.
        spelt = text.encode()
        tokens = self._vocabulary.encode(text, add_special_tokens=False, parse_special=False)
        # A tokenizer may put a space before a text.
        known = all(token < len(self.tokens) for token in tokens)
        return tokens if known and b"".join(map(self.tokens.__getitem__, tokens)) == spelt else self.spell(spelt)

    def spell(self, spelt: bytes) -> list[int]:
        """The longest token at each place; text that no token begins ends the list."""
        tokens: list[int] = []
        start = 0
        while start < len(spelt):
            stops = range(min(start + self._longest, len(spelt)), start, -1)
            stop = next((stop for stop in stops if spelt[start:stop] in self._ids), None)
            if stop is None:
                break
            tokens.append(self._ids[spelt[start:stop]])
            start = stop
        return tokens


def _ends(vocabulary: Vocabulary, width: int) -> list[int]:
    ends = sorted(token for token in vocabulary.eos_token_ids if token < width)
    if not ends:
        raise GrammarError("the model has no token that ends a completion")
    return ends
