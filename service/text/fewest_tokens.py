"""The fewest tokens that a text can have, told by its length, so that one which cannot fit need not be tokenised."""

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from service.text.spelling import BYTE_ALPHABET

_CUTTERS = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"}
"""Pre-tokenizers that leave nothing out, unless their behaviour is to remove what they find."""


class TooLongError(ValueError):
    """The text has too many tokens: `fewest` at least."""

    def __init__(self, fewest: int) -> None:
        super().__init__(f"the text has at least {fewest} tokens")
        self.fewest = fewest


class FewestTokens:
    """The least number of tokens of a text, by the characters of the longest token.

    Characters are what counts, because a byte-level token of n bytes stands for n characters at most. There is no such
    number, and 0 is told, where a token may stand for text of any length: for an unknown word, or with white space.
    ASCII characters without a token of their own, such as control characters that a vocabulary lacks, are not counted.
    """

    def __init__(self, backend: Backend) -> None:
        normalizers = [*_steps(backend.normalizer, "normalizers")]
        self._unknown = _unknown_characters(backend)
        known = self._unknown is not None and _leaves_nothing_out(backend, normalizers)
        self._longest = _longest_token(backend) if known else None
        self._composes = any(step["type"] == "NFC" for step in normalizers)

    def of(self, text: str) -> int:
        """A number of tokens that the text has at least."""
        # Characters that compose become fewer; those of ASCII don't.
        if self._longest is None or (self._composes and not text.isascii()):
            return 0
        characters = len(text) - sum(map(text.count, self._unknown or ""))
        return -(-characters // self._longest)

    def check(self, text: str, most: int | None) -> None:
        """Raise TooLongError if a text is known to have more than `most` tokens; None allows any number."""
        if most is not None and (fewest := self.of(text)) > most:
            raise TooLongError(fewest)


def _longest_token(backend: Backend) -> int:
    """Characters of the longest token, as normalised text has them."""
    spelt = max(map(len, backend.get_vocab(with_added_tokens=True)), default=1)
    normalizer = backend.normalizer
    added = backend.get_added_tokens_decoder().values()
    sought = [normalizer.normalize_str(token.content) for token in added if token.normalized] if normalizer else []
    return max(spelt, 1, *map(len, sought))


def _leaves_nothing_out(backend: Backend, normalizers: list[dict[str, Any]]) -> bool:
    """Whether every known character of a text is in a token's spelling."""
    return (
        all(map(_keeps_length, normalizers))
        and all(map(_keeps_text, _steps(backend.pre_tokenizer, "pretokenizers")))
        and not any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values())
    )


def _keeps_length(normalizer: dict[str, Any]) -> bool:
    """Whether a normalizer leaves at least as many characters; NFC does so for ASCII."""
    match normalizer:
        case {"type": "NFC" | "Prepend"}:
            return True
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            return len(content) >= len(pattern)
        case _:
            return False


def _keeps_text(pre_tokenizer: dict[str, Any]) -> bool:
    return pre_tokenizer["type"] in _CUTTERS and pre_tokenizer.get("behavior") != "Removed"


def _unknown_characters(backend: Backend) -> str | None:
    """The ASCII characters without a token; None where other characters may be without one too."""
    if not isinstance(backend.model, BPE):
        return None
    if any(step["type"] == "ByteLevel" for step in _steps(backend.pre_tokenizer, "pretokenizers")):
        missing = [byte for text, byte in BYTE_ALPHABET.items() if backend.token_to_id(text) is None]
        # Any other character has a byte from 0x80 to 0xBF, and is known by that one.
        if any(0x80 <= byte < 0xC0 for byte in missing):
            return None
        return "".join(chr(byte) for byte in missing if byte < 0x80)
    every = all(backend.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
    return "" if every and backend.model.byte_fallback else None


def _steps(part: Any, name: str) -> Iterator[dict[str, Any]]:
    """The steps of a backend's normalizer or pre-tokenizer; a sequence has them under `name`."""
    if part is not None:
        yield from _flat(json.loads(part.__getstate__()), name)


def _flat(step: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    if step["type"] != "Sequence":
        yield step
        return
    for inner in step[name]:
        yield from _flat(inner, name)
