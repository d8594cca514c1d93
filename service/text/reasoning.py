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
        self._space: list[str] = []
        """White space that belongs to the text if more text follows it."""
        self._held = ""
        """The beginning of a marker, after that white space."""

    def push(self, text: str, *, last: bool = False) -> tuple[str, str]:
        """The reasoning and the other text that are certain with this piece; with the last one, all the rest."""
        text, self._held = self._held + text, ""
        reasoning = ""
        if self._stage == "before":
            text = self._find_opening(text, last)
        if self._stage == "inside":
            reasoning, text = self._take_reasoning(text, last)
        return reasoning, self._trimmed(text) if self._stage == "after" else ""

    def _find_opening(self, text: str, last: bool) -> str:
        """The text after the opening marker, or all of it if there is none; empty while that isn't certain."""
        beginning = text.lstrip()
        if beginning.startswith(self._form.opening):
            self._stage, self._trims = "inside", True
            self._space.clear()
            return beginning.removeprefix(self._form.opening)
        self._space.append(text[: len(text) - len(beginning)])
        if last or not self._form.opening.startswith(beginning):
            self._stage = "after"
            return self._after_space(beginning)
        self._held = beginning
        return ""

    def _take_reasoning(self, text: str, last: bool) -> tuple[str, str]:
        """The reasoning that is certain, and the text after the closing marker."""
        inside, found, after = text.partition(self._form.closing)
        if not found and not last:
            inside = _without_beginning_of(text, self._form.closing)
            self._held = text[len(inside) :]
        inside = self._trimmed(inside)
        certain = inside.rstrip()
        reasoning = self._after_space(certain) if certain else ""
        self._space.append(inside[len(certain) :])
        if found:
            self._stage, self._trims = "after", True
            self._space.clear()
        return reasoning, after

    def _trimmed(self, text: str) -> str:
        if self._trims:
            text = text.lstrip()
            self._trims = not text
        return text

    def _after_space(self, text: str) -> str:
        """The text, after the white space that was held back before it."""
        space, self._space = "".join(self._space), []
        return space + text


def _without_beginning_of(text: str, marker: str) -> str:
    """The text without its end, if that is a beginning of the marker."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return text[:-length]
    return text
