"""JSON read character by character, as coroutines that are sent one character at a time.

Each returns the character after its value, or an empty text if the value ended with its own last character. It is
strict JSON (RFC 8259) with a bound on nesting; malformed text raises Malformed at its first wrong character, or at the
end of a wrong number.
"""

import re
from collections.abc import Generator
from typing import Any

MOST_NESTED = 64
"""Objects and lists within one another."""
_MOST_DIGITS = 512

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_SPACE = " \t\r\n"

Reading = Generator[None, str, str]


class Malformed(ValueError):
    """The text is not what was expected here."""


def nests_within(value: Any, most: int) -> bool:
    """Whether plain data has at most this many objects and lists within one another."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return True
    return False


def skip_space(character: str = "") -> Reading:
    """The first character that is no white space, from `character` on, or from the next one if that is empty."""
    while not character or character in _SPACE:
        character = yield
    return character


def expect(character: str, one_of: str) -> None:
    """Raise Malformed unless a character is one of these."""
    if character not in one_of:
        raise Malformed


def read_string() -> Reading:
    """Read a string, without its opening quote; the result is its text as it was written, without quotes."""
    written: list[str] = []
    while (character := (yield)) != '"':
        if character < " ":
            raise Malformed
        written.append(character)
        if character == "\\":
            escape = yield
            expect(escape, '"\\/bfnrtu')
            written.append(escape)
            for _ in range(4 if escape == "u" else 0):
                digit = yield
                expect(digit, "0123456789abcdefABCDEF")
                written.append(digit)
    return "".join(written)


def read_value(first: str, depth: int = 0) -> Reading:
    """Read any value, whose first character is `first`."""
    match first:
        case '"':
            yield from read_string()
            return ""
        case "{" | "[" if depth < MOST_NESTED:
            yield from (_read_object(depth + 1) if first == "{" else _read_list(depth + 1))
            return ""
        case "t" | "f" | "n":
            for expected in {"t": "rue", "f": "alse", "n": "ull"}[first]:
                expect((yield), expected)
            return ""
        case _:
            return (yield from _read_number(first))


def _read_number(first: str) -> Reading:
    expect(first, "-0123456789")
    digits = [first]
    while (character := (yield)) in "+-.0123456789eE":
        digits.append(character)
        if len(digits) > _MOST_DIGITS:
            raise Malformed
    if not _NUMBER.fullmatch("".join(digits)):
        raise Malformed
    return character


def _read_object(depth: int) -> Generator[None, str, None]:
    character = yield from skip_space()
    if character == "}":
        return
    while True:
        expect(character, '"')
        yield from read_string()
        expect((yield from skip_space()), ":")
        after = yield from read_value((yield from skip_space()), depth)
        character = yield from skip_space(after)
        expect(character, ",}")
        if character == "}":
            return
        character = yield from skip_space()


def _read_list(depth: int) -> Generator[None, str, None]:
    character = yield from skip_space()
    while character != "]":
        after = yield from read_value(character, depth)
        character = yield from skip_space(after)
        expect(character, ",]")
        if character == ",":
            character = yield from skip_space()
            if character == "]":
                raise Malformed
