"""The files of a batch, in OpenAI's form: requests, a JSON object a line, and their results, in the order they come.

It knows which requests have a result, and nothing of what is asked or answered.
"""

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from service.api.bodies import parse
from service.api.errors import ApiError, refusal
from service.command_error import CommandError

_LONGEST_ID = 512
_BEGINNING = b'{"id":"batch_req_'
"""First bytes of every result."""
_FIELDS = {"id", "custom_id", "response", "error"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the requests."""

    number: int
    """Its place in the file, counted from 1."""
    text: bytes
    custom_id: str | None
    """The client's name for the request; None for a line that has none of its own."""
    fault: ApiError | None = None
    """The reason why it has none."""

    @property
    def id(self) -> str:
        """A name for the line itself."""
        return f"batch_req_line_{self.number}"


def read_lines(path: Path, most: int) -> list[Line]:
    """The lines of a file of requests, empty ones left out. A line of more than `most` bytes is at fault."""
    lines: list[Line] = []
    places: dict[str, int] = {}
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                custom_id = _custom_id(text, most)
                if custom_id in places:
                    raise refusal("custom_id", f"{custom_id!r:.128} is that of line {places[custom_id]}, too")
            except ApiError as error:
                lines.append(Line(number, b"", None, error))
            else:
                places[custom_id] = number
                lines.append(Line(number, text, custom_id))
    return lines


def _custom_id(text: bytes, most: int) -> str:
    if len(text) > most:
        raise ApiError(413, f"The line is larger than {most} bytes.")
    value = parse(text)
    if not isinstance(value, dict):
        raise ApiError(400, "The line is not a JSON object.")
    custom_id = value.get("custom_id")
    if not (isinstance(custom_id, str) and 1 <= len(custom_id) <= _LONGEST_ID):
        raise refusal("custom_id", f"should be a string of 1 to {_LONGEST_ID} characters")
    return custom_id


class Results:
    """The file of results, which nobody else writes meanwhile. Each is written whole as soon as it is there.

    The results that the file has already are kept; the beginning of one, which a killed program left, is cut off.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it. Raises CommandError if it is no file of results, or somebody else writes it."""
        self.failed = 0
        """Number of results that are errors."""
        self._path = path
        self._known: set[str] = set()
        self._faults: set[str] = set()
        self._file = path.open("a+b")
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __contains__(self, line: Line) -> bool:
        return line.id in self._faults if line.custom_id is None else line.custom_id in self._known

    def add(self, result: dict[str, Any]) -> None:
        """Write one more result, an object with the fields of OpenAI's."""
        self._note(result)
        self._file.write(json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CommandError(f"{self._path}: another program writes it") from None

    def _read(self) -> None:
        end = 0
        self._file.seek(0)
        for number, text in enumerate(self._file, 1):
            if (result := _result(text)) is not None:
                self._note(result)
            elif text.endswith(b"\n") or not (text.startswith(_BEGINNING) or _BEGINNING.startswith(text)):
                raise CommandError(f"{self._path}: line {number} is no result of a batch; name another file")
            else:
                os.truncate(self._file.fileno(), end)
                return
            end += len(text)
            if not text.endswith(b"\n"):
                self._file.write(b"\n")

    def _note(self, result: dict[str, Any]) -> None:
        response, custom_id = result["response"], result["custom_id"]
        self.failed += response is None or response["status_code"] != 200
        if custom_id is None:
            self._faults.add(result["id"])
        else:
            self._known.add(custom_id)


def _result(text: bytes) -> dict[str, Any] | None:
    """The result in a line; None if it is none, or not whole."""
    try:
        result = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(result, dict) or not result.keys() >= _FIELDS:
        return None
    response = result["response"]
    return result if response is None or (isinstance(response, dict) and "status_code" in response) else None
