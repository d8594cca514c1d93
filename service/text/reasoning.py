"""Tells a model's reasoning from its answer while the text comes."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The markers around reasoning."""

    opening: str
    closing: str


_TABLE = (ReasoningFormat("<think>", "</think>"), ReasoningFormat("[THINK]", "[/THINK]"))


def reasoning_format_of(source: str) -> ReasoningFormat | None:
    """The form of the reasoning of the model with this chat template; None if the template knows of none."""
    return next((form for form in _TABLE if form.opening in source and form.closing in source), None)


class ReasoningReader:
    """The reasoning at the beginning of a text, and the text after it, however the text is cut into pieces.

    White space around the reasoning belongs to neither. Markers that come later are text.
    """

    def __init__(self, form: ReasoningFormat, *, opened: bool) -> None:
        """`opened` says that the prompt ends with the opening marker, so that the text begins within the reasoning."""
        self._form = form
        self._stage: Literal["before", "inside", "after"] = "inside" if opened else "before"
        self._trims = opened
        """Whether white space that comes next is left out."""
        self._held = ""

    def push(self, text: str, *, last: bool = False) -> tuple[str, str]:
        """The reasoning and the other text that are certain with this piece; with the last one, all the rest."""
        self._held += text
        reasoning = ""
        if self._stage == "before":
            self._find_opening()
        if self._stage == "inside":
            reasoning = self._take_reasoning()
        rest = self._take(len(self._held)) if last or self._stage == "after" else ""
        return (reasoning + rest.rstrip(), "") if self._stage == "inside" else (reasoning, rest)

    def _find_opening(self) -> None:
        beginning = self._held.lstrip()
        if beginning.startswith(self._form.opening):
            self._held = beginning.removeprefix(self._form.opening)
            self._stage, self._trims = "inside", True
        elif not self._form.opening.startswith(beginning):
            self._stage = "after"

    def _take_reasoning(self) -> str:
        inside, found, after = self._held.partition(self._form.closing)
        if not found:
            return self._take(len(_without_beginning_of(inside, self._form.closing).rstrip()))
        reasoning = self._take(len(inside)).rstrip()
        self._held, self._stage, self._trims = after, "after", True
        return reasoning

    def _take(self, characters: int) -> str:
        """Take the first characters from those held."""
        text, self._held = self._held[:characters], self._held[characters:]
        if self._trims:
            text = text.lstrip()
            self._trims = not text
        return text


def _without_beginning_of(text: str, marker: str) -> str:
    """The text without its end, if that is a beginning of the marker."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return text[:-length]
    return text
