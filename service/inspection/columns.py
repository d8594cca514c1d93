"""Text in a terminal's columns: its width there, cut to fit, and with what cannot be seen made visible."""

import unicodedata
from collections.abc import Iterator

_SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥"}
_BESIDE = ((0x1160, 0x11FF), (0xD7B0, 0xD7FF))
"""Vowels and finals of Hangul, which are drawn onto the letter before them."""


def shown(text: str) -> str:
    """A token's text without spaces, and without anything that would move a terminal's cursor."""
    seen = "".join(_sign(character) for character in text) or "∅"
    # A mark that is drawn onto the character before it would be drawn onto a label's end.
    return seen if _columns(seen[0]) else f"◌{seen}"


def _sign(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    if unicodedata.category(character)[0] in "CZ":
        return f"\\x{ord(character):02x}"
    return character


def clusters(text: str) -> Iterator[str]:
    """The text's characters, each with what is drawn onto it."""
    cluster = ""
    for character in text:
        if cluster and _columns(character):
            yield cluster
            cluster = ""
        cluster += character
    if cluster:
        yield cluster


def width(text: str) -> int:
    """Columns of a text."""
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    code = ord(character)
    if unicodedata.category(character) in ("Mn", "Me") or any(first <= code <= last for first, last in _BESIDE):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fitted(text: str, columns: int, *, right: bool = False) -> str:
    """The text in exactly so many columns, cut or filled; `right` moves it to the right."""
    if width(text) > columns:
        kept, room = "", columns - 1
        for cluster in clusters(text):
            if (room := room - width(cluster)) < 0:
                break
            kept += cluster
        text = f"{kept}…" if columns else ""
    space = " " * (columns - width(text))
    return space + text if right else text + space
