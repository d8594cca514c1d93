"""Reads one streamed answer: the arrival time of each token, the server's token counts, and errors.

All server-sent events are read here. The module does no I/O: the owner of the connection passes in lines and their
times. Knows nothing of Locust, workloads or goals.
"""

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


class StreamError(Exception):
    """The stream contains an error or is not a whole answer. The message is one line."""


@dataclass(slots=True)
class Answer:
    """The result of one request. Times are in seconds."""

    began: float
    """The time of day when the request was sent."""
    seconds: float
    """The time until the last event, or until the failure."""
    ttft: float | None = None
    """The time until the first token; None if there was none."""
    gaps: list[float] = field(default_factory=list)
    """The times between each event with a token and the next one."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the prompt that the server reports as found in its prefix cache."""
    completion_tokens: int = 0
    model: str = ""
    """The model that was asked; empty if there was no choice."""
    length: int = 0
    """The bytes of the text."""
    error: str | None = None
    abandoned: bool = False
    """Whether the test ended before the answer did; this is not an error."""

    @property
    def complete(self) -> bool:
        return self.error is None and not self.abandoned

    @property
    def seconds_per_token(self) -> float | None:
        """The mean time between tokens; None for a completion of at most one token."""
        return sum(self.gaps) / (self.completion_tokens - 1) if self.completion_tokens > 1 else None


class Stream:
    """Collects the lines of a stream. All times are in seconds, on one clock that the caller chooses."""

    def __init__(self, sent: float) -> None:
        """A stream whose request was sent at `sent`."""
        self.text = ""
        self.done = False
        self._sent = sent
        self._arrivals: list[float] = []
        self._ended: float | None = None
        self._usage: dict[str, Any] = {}

    def feed(self, line: bytes, now: float) -> None:
        """Take one line of the body, which came at `now`. Raises StreamError if it is an error or no JSON."""
        name, _, value = line.strip().partition(b":")
        if name != b"data":
            return  # A blank line, a comment that keeps proxies awake, or a field that these APIs don't use.
        if value.strip() == b"[DONE]":
            self.done = True
            return
        try:
            event = json.loads(value)
        except ValueError:
            raise StreamError(f"an event that is not JSON: {value[:80]!r}") from None
        if error := event.get("error"):
            raise StreamError(
                f"the server broke off: {error.get('message', error) if isinstance(error, dict) else error}"
            )
        self._usage = event.get("usage") or self._usage
        for choice in event.get("choices") or ():
            self._take(choice, now)

    def _take(self, choice: dict[str, Any], now: float) -> None:
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content") or ""
        if text or delta.get("reasoning_content") or delta.get("reasoning"):
            self._arrivals.append(now)
            self.text += text
        elif choice.get("finish_reason"):
            self._ended = now

    def answer(self, began: float, now: float) -> Answer:
        """The whole answer, after its last line has come. Raises StreamError if the stream is not a whole answer."""
        if not self.done:
            raise StreamError("the stream ended without [DONE]")
        if "completion_tokens" not in self._usage:
            raise StreamError("the server sent no token counts, though stream_options.include_usage asked for them")
        tokens = int(self._usage["completion_tokens"])
        # A last event without text counts as a token only if one is missing. Some servers count a last token that has
        # no text; others send the finish reason in an event of its own, after the last token.
        if self._ended is not None and len(self._arrivals) < tokens:
            self._arrivals.append(self._ended)
        if not self._arrivals:
            raise StreamError("the server sent no token")
        details = self._usage.get("prompt_tokens_details") or {}
        return Answer(
            began=began,
            seconds=now - self._sent,
            ttft=self._arrivals[0] - self._sent,
            gaps=[after - before for before, after in pairwise(self._arrivals)],
            prompt_tokens=int(self._usage.get("prompt_tokens") or 0),
            cached_tokens=int(details.get("cached_tokens") or 0),
            completion_tokens=tokens,
            length=len(self.text.encode()),
        )

    def broken(self, began: float, now: float, error: str | None) -> Answer:
        """The unfinished answer of a request that failed with `error`, or was abandoned if `error` is None."""
        return Answer(
            began=began,
            seconds=now - self._sent,
            ttft=self._arrivals[0] - self._sent if self._arrivals else None,
            gaps=[after - before for before, after in pairwise(self._arrivals)],
            error=error,
            abandoned=error is None,
        )
