"""Finds calls of functions in a model's text while it comes, and tells them from the text around them.

It knows the form of the calls and the names of the functions, and nothing of how its pieces are sent on.
"""

import json
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass

from service.text.tools.formats import ToolFormat
from service.text.tools.json_reader import Malformed, expect, read_string, read_value, skip_space

ARGUMENT_NAMES = ("arguments", "parameters")

_Attempt = Generator[None, str, None]


@dataclass(frozen=True, slots=True)
class CallDelta:
    """An addition to the call with this index among a message's calls."""

    index: int
    name: str | None
    """The function's name, with the first delta of a call only."""
    arguments: str
    """The next piece of the arguments, as the model wrote them."""


class CallReader:
    """The calls and the other text of one message, however the text is cut into pieces.

    A call begins when its function, one of those offered, is named and its arguments begin; all that comes before is
    held back until then, and is text if it does not come to that. Arguments are passed on as the model writes them; if
    they turn out to be no JSON, the rest up to the closing marker is still theirs. White space around calls belongs to
    neither.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], *, parallel: bool = True) -> None:
        """`names` are the functions that may be called. Without `parallel`, the message ends with its first call."""
        self.calls = 0
        """Number of calls that have begun."""
        self._form, self._names, self._parallel = form, names, parallel
        self._content: list[str] = []
        self._deltas: list[CallDelta] = []
        # Undecided characters. The first `_safe` of them are text if an attempt at a call fails; the first `_space`
        # are white space.
        self._held: list[str] = []
        self._safe = self._space = 0
        self._attempt: _Attempt | None = None
        self._call: _Call | None = None
        self._raw = False
        self._fresh = True
        """Whether JSON here would be a call, in a form without markers: no text has come, or none after a call."""
        self._after_call = False

    def push(self, text: str, *, last: bool = False) -> tuple[str, list[CallDelta]]:
        """The text and the additions to calls that are certain with this piece; with the last one, all the rest."""
        self._read(text)
        if last:
            self._finish()
        content, self._content = "".join(self._content), []
        deltas, self._deltas = self._deltas, []
        return content, _joined(deltas)

    def _finish(self) -> None:
        """Decide about the characters that are held, because no more will come."""
        while self._attempt is not None and (self._call is None or not self._call.begun):
            if self._after_call and "".join(self._held).strip() in ("", ","):
                break
            self._read(self._fail())
        rest = "".join(self._held)
        if self._raw:
            self._argument(rest)
        elif self._attempt is None and not (self._after_call and self._form.closing.startswith(rest.strip())):
            self._content.append(rest)
        self._held.clear()

    def _read(self, text: str) -> None:
        # Characters that an attempt took in vain are read again.
        ahead = list(reversed(text))
        while ahead:
            ahead.extend(reversed(self._take(ahead.pop())))

    def _take(self, character: str) -> str:
        """Read one character; the result is text to be read again."""
        if self._over:
            return ""
        if self._raw:
            return self._take_raw(character)
        if self._attempt is not None:
            return self._take_in_attempt(character)
        return self._take_text(character)

    @property
    def _over(self) -> bool:
        return not self._parallel and self.calls > 0 and self._call is None

    def _take_text(self, character: str) -> str:
        marker = "".join(self._held[self._space :]) + character
        self._held.append(character)
        if len(marker) == 1 and character.isspace():
            self._space += 1
        elif marker == self._form.opening or (self._form.bare and self._fresh and marker in ("{", "[")):
            self._safe = len(self._held)
            self._attempt = self._calls(marker if marker in ("{", "[") else "")
            next(self._attempt)
        elif self._after_call and marker in (self._form.closing, self._form.separator):
            self._drop()
        elif not any(expected.startswith(marker) for expected in self._expected()):
            self._safe = self._space + 1
            return self._fail()
        return ""

    def _expected(self) -> tuple[str, ...]:
        return (self._form.opening, self._form.closing) if self._after_call else (self._form.opening,)

    def _take_in_attempt(self, character: str) -> str:
        assert self._attempt is not None
        if self._call is not None and self._call.recording:
            self._call.arguments.append(character)
        if self._call is None or not (self._call.begun and self._call.recording):
            self._held.append(character)
        try:
            self._attempt.send(character)
        except StopIteration:
            self._attempt = None
            self._drop()
        except Malformed:
            if self._call is None or not (self._call.begun and self._call.recording):
                return self._fail()
            # Its name is told already: the rest stays with the arguments.
            self._pass_arguments()
            self._attempt, self._raw = None, True
        else:
            self._pass_arguments()
        return ""

    def _take_raw(self, character: str) -> str:
        marker = "".join(self._held) + character
        if marker == self._form.closing:
            self._raw = False
            self._end_call()
        elif self._form.closing.startswith(marker):
            self._held.append(character)
        else:
            self._held.clear()
            self._argument(marker[0])
            return marker[1:]
        return ""

    def _fail(self) -> str:
        """Let the safe part of the held characters be text, and the others be read again."""
        self._content.append("".join(self._held[: self._safe]))
        again = "".join(self._held[self._safe :])
        self._drop()
        self._attempt = self._call = None
        self._fresh = self._after_call = False
        return again

    def _drop(self) -> None:
        self._held.clear()
        self._space = 0

    def _calls(self, first: str) -> _Attempt:
        """Read a call or a list of them, of which `first` has come."""
        first = yield from skip_space(first)
        if self._form.name_outside and first not in "[{":
            yield from self._named_call(first)
            return
        if first != "[":
            yield from self._json_call(first)
            return
        character = yield from skip_space()
        while True:
            yield from self._json_call(character)
            character = yield from skip_space()
            expect(character, ",]")
            if character == "]":
                return
            character = yield from skip_space()

    def _json_call(self, first: str) -> _Attempt:
        """Read a JSON object with a name and arguments."""
        expect(first, "{")
        self._call = call = _Call()
        character = yield from skip_space()
        while True:
            expect(character, '"')
            key = _decoded((yield from read_string()))
            expect((yield from skip_space()), ":")
            character = yield from skip_space()
            if key == "name" and call.name is None:
                expect(character, '"')
                self._name(call, _decoded((yield from read_string())))
                after = ""
            elif key in ARGUMENT_NAMES and not call.has_arguments:
                after = yield from self._arguments(call, character)
            else:
                after = yield from read_value(character, depth=1)
            character = yield from skip_space(after)
            expect(character, ",}")
            if character == "}":
                break
            character = yield from skip_space()
        if call.name is None:
            raise Malformed
        if not call.has_arguments:
            call.write("{}")
            self._pass_arguments()
        self._end_call()

    def _named_call(self, first: str) -> _Attempt:
        """Read a name and a JSON object of arguments."""
        self._call = call = _Call()
        name, character = first, ""
        between = self._form.between
        while (character := (yield)) != "{":
            name += character
            if len(name) > len(between) + max(map(len, self._names), default=0):
                raise Malformed
        self._name(call, name.strip().removesuffix(between).strip())
        yield from self._arguments(call, character)
        self._end_call()

    def _name(self, call: "_Call", name: str) -> None:
        if name not in self._names:
            raise Malformed
        call.name = name

    def _arguments(self, call: "_Call", first: str) -> Generator[None, str, str]:
        """Read the value of a call's arguments: an object, a text that holds one, or null; the result is as ever."""
        if first == "{":
            call.recording = True
            call.write("{")
            self._pass_arguments()
            yield from read_value(first, depth=1)
            # The last character is still recorded; the attempt goes on with the next.
            self._pass_arguments()
            call.recording = False
            return ""
        if first == '"':
            call.write(_object(_decoded((yield from read_string()))))
            return ""
        expect(first, "n")
        after = yield from read_value(first)
        call.write("{}")
        return after

    def _pass_arguments(self) -> None:
        """Pass on what has come of the arguments, if the call's name is known."""
        call = self._call
        if call is None or call.name is None or not call.arguments:
            return
        if not call.begun:
            call.begun = True
            self._deltas.append(CallDelta(self.calls, call.name, ""))
            self.calls += 1
            self._drop()
            self._safe = 1
        self._argument("".join(call.arguments))
        call.arguments.clear()

    def _argument(self, text: str) -> None:
        if text:
            self._deltas.append(CallDelta(self.calls - 1, None, text))

    def _end_call(self) -> None:
        self._call = None
        self._drop()
        self._safe = 1
        self._fresh = self._after_call = True


class _Call:
    """A call that is being read."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments: list[str] = []
        """The part of the arguments that has not been passed on."""
        self.has_arguments = False
        self.recording = False
        """Whether the characters that come are arguments."""
        self.begun = False
        """Whether its name has been passed on."""

    def write(self, arguments: str) -> None:
        self.has_arguments = True
        self.arguments.append(arguments)


def _decoded(written: str) -> str:
    """The text that the inside of a JSON string stands for. Raises Malformed for half of a surrogate pair."""
    text: str = json.loads(f'"{written}"')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Malformed from None
    return text


def _object(text: str) -> str:
    """The text itself, or {} for an empty one. Raises Malformed unless it is a JSON object."""
    try:
        if not isinstance(json.loads(text or "{}"), dict):
            raise Malformed
    except (ValueError, RecursionError):
        raise Malformed from None
    return text or "{}"


def _joined(deltas: Sequence[CallDelta]) -> list[CallDelta]:
    """The deltas with one for each call."""
    joined: list[CallDelta] = []
    for delta in deltas:
        if joined and joined[-1].index == delta.index:
            last = joined.pop()
            delta = CallDelta(last.index, last.name, last.arguments + delta.arguments)
        joined.append(delta)
    return joined
