"""The parts of a model's message in the order in which they come: reasoning, text and calls, each in one piece.

APIs that answer with a list of parts share it. It knows nothing of their forms.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from service.api.requests import Job
from service.generation import Piece
from service.text.message import MessageReader
from service.text.tools.reader import CallDelta


@dataclass(slots=True)
class Part:
    """One part of a message, as far as it has come."""

    index: int
    kind: Literal["reasoning", "text", "call"]
    text: str = ""
    """Its text, or a call's arguments as the model wrote them."""
    name: str = ""
    """The function of a call."""
    call_id: str = ""
    pieces: list[Piece] = field(default_factory=list)
    """The pieces that its text came from, with those that were held back before it; no stop token is one of them."""


@dataclass(frozen=True, slots=True)
class Change:
    """A part begins, gets more text, or ends."""

    kind: Literal["begin", "add", "end"]
    part: Part
    text: str = ""
    """The addition."""
    pieces: tuple[Piece, ...] = ()
    """The pieces of the addition."""


class PartsReader:
    """Reads the message of a job with one choice. A message without anything has one empty text."""

    def __init__(self, job: Job) -> None:
        assert len(job.choices) == 1
        self.parts: list[Part] = []
        self.reasoning_tokens = 0
        self.last: Piece | None = None
        """The last piece of the message, once it has come."""
        self._form = job.message
        self._reader = MessageReader(job.message)
        self._held: list[Piece] = []
        self._tokens = 0
        self._open = False

    @property
    def called(self) -> bool:
        """Whether the message has a call."""
        return self._reader.calls > 0

    def push(self, piece: Piece) -> Iterator[Change]:
        """The changes that are certain with this piece; with the last one, all the rest."""
        last = piece.finish_reason is not None
        # A stop token that is left out of the text belongs to no part.
        if not piece.silent:
            self._held.append(piece)
        self._tokens += piece.token is not None
        delta = self._reader.push(piece.text, last=last)
        if delta.reasoning:
            self.reasoning_tokens = self._tokens
            yield from self._add("reasoning", delta.reasoning)
        if delta.content:
            yield from self._add("text", delta.content)
        for call in delta.calls:
            yield from self._call(call)
        if last:
            self.last = piece
            if not self.parts:
                yield from self._add("text", "")
            yield from self._end()

    def _add(self, kind: Literal["reasoning", "text"], text: str) -> Iterator[Change]:
        if not (self._open and self.parts[-1].kind == kind):
            yield from self._begin(Part(len(self.parts), kind))
        yield from self._addition(text)

    def _call(self, call: CallDelta) -> Iterator[Change]:
        if call.name is not None:
            assert self._form.calls is not None
            part = Part(len(self.parts), "call", name=call.name, call_id=self._form.calls.new_id())
            yield from self._begin(part)
        yield from self._addition(call.arguments)

    def _begin(self, part: Part) -> Iterator[Change]:
        yield from self._end()
        self.parts.append(part)
        self._open = True
        yield Change("begin", part)

    def _addition(self, text: str) -> Iterator[Change]:
        pieces, self._held = tuple(self._held), []
        part = self.parts[-1]
        part.text += text
        part.pieces += pieces
        if text:
            yield Change("add", part, text, pieces)

    def _end(self) -> Iterator[Change]:
        if self._open:
            self._open = False
            yield Change("end", self.parts[-1])
