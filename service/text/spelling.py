"""The bytes that a vocabulary's tokens spell: by the byte-level alphabet, or by SentencePiece's marks."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

from model.checkpoint.errors import CheckpointError, label

WORD_MARK = "▁"
"""The character that stands for a space in SentencePiece's tokens."""

_SENTENCEPIECE_DECODERS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's bijection: printable Latin-1 characters are themselves, the other bytes follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


@dataclass(frozen=True, slots=True)
class Spelling:
    """Turns the tokens of one vocabulary into the bytes that they stand for."""

    token: Callable[[str], bytes]
    """The bytes of an ordinary token."""
    added: Callable[[str], bytes]
    """The bytes of a token that was added beside the model's own; its text is plain."""
    leading_space: bool
    """Whether the tokenizer puts a space before a text, and decoding a whole text takes it away again."""


def spelling_of(backend: Backend) -> Spelling:
    """The spelling that a backend's decoder implies. Raises CheckpointError for a decoder of neither kind."""
    steps = _decoder_steps(backend)
    kinds = {str(step["type"]) for step in steps}
    if "ByteLevel" in kinds:
        return Spelling(_byte_level, str.encode, leading_space=False)
    if kinds & {"Replace", "Metaspace"} and kinds <= _SENTENCEPIECE_DECODERS:
        return Spelling(
            _sentencepiece_with_bytes if "ByteFallback" in kinds else _sentencepiece,
            _sentencepiece,
            leading_space=any(_strips_leading_space(step) for step in steps),
        )
    raise CheckpointError(f"a tokenizer whose decoder is {label(sorted(kinds))} is not supported")


def _decoder_steps(backend: Backend) -> list[dict[str, Any]]:
    if backend.decoder is None:
        return []
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return steps


def _strips_leading_space(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return bool(step["prepend_scheme"] != "never")
    return bool(step["type"] == "Strip" and step["content"] == " " and step["start"] == 1)


def _byte_level(token: str) -> bytes:
    try:
        return bytes([BYTE_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    return token.replace(WORD_MARK, " ").encode()


def _sentencepiece_with_bytes(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(match[1]) if match else _sentencepiece(token)
