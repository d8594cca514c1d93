"""A model's message, read from its text while that comes: its reasoning, its content, and its calls of functions."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from service.text.reasoning import ReasoningFormat, ReasoningReader
from service.text.tools.formats import ToolFormat
from service.text.tools.reader import CallDelta, CallReader


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageForm:
    """The parts that a message may have, and the forms in which the model writes them."""

    calls: ToolFormat | None = None
    """Form of its calls; None if it has none, and text that looks like one stays text."""
    functions: Collection[str] = ()
    """Names of the functions that it may call."""
    parallel: bool = True
    """Whether it may have several calls."""
    reasoning: ReasoningFormat | None = None
    """Form of its reasoning; None if that stays a part of the text."""
    reasoning_opened: bool = False
    """Whether the prompt has opened the reasoning."""

    @property
    def markers(self) -> frozenset[str]:
        """Texts that have to be seen in the model's text also where they are special tokens."""
        calls = self.calls.markers if self.calls else frozenset()
        return calls | ({self.reasoning.opening, self.reasoning.closing} if self.reasoning else set())


@dataclass(slots=True)  # Not frozen: there is one for each token, and freezing takes most of the time.
class MessageDelta:
    """An addition to a message; empty where nothing is certain yet."""

    reasoning: str = ""
    content: str = ""
    calls: Sequence[CallDelta] = field(default=())

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


class MessageReader:
    """Reads one message. Its deltas, joined, are the same however the text is cut into pieces."""

    def __init__(self, form: MessageForm) -> None:
        self._reasoning = (
            ReasoningReader(form.reasoning, opened=form.reasoning_opened) if form.reasoning is not None else None
        )
        self._calls = CallReader(form.calls, form.functions, parallel=form.parallel) if form.calls is not None else None

    @property
    def calls(self) -> int:
        """Number of calls that have begun."""
        return 0 if self._calls is None else self._calls.calls

    def push(self, text: str, *, last: bool = False) -> MessageDelta:
        """The addition that is certain with this piece; with the last one, all the rest."""
        reasoning, content, calls = "", text, list[CallDelta]()
        if self._reasoning is not None:
            reasoning, content = self._reasoning.push(text, last=last)
        if self._calls is not None:
            content, calls = self._calls.push(content, last=last)
        return MessageDelta(reasoning, content, calls)
