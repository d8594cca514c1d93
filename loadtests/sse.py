"""Reads one streamed answer: when each token came, how many the server counted, and what went wrong.

The only reader of server-sent events here. Does no I/O: whoever holds the connection passes the lines in, with their
times. Knows nothing of Locust, workloads or goals.
"""

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


class StreamError(Exception):
    """The server told of an error in the stream, or the stream is not a whole answer; one line."""


@dataclass(slots=True)
class Answer:
    """What became of one request. Times in seconds; `began` is the time of day, the others count from there."""

    began: float
    seconds: float
    """Until the last event, or until it failed."""
    ttft: float | None = None
    gaps: list[float] = field(default_factory=list)
    """Between one event with a token and the next."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's tokens, those that the server says it found in its prefix cache."""
    completion_tokens: int = 0
    error: str | None = None
    abandoned: bool = False
    """The test ended before the answer did; that is nobody's error."""

    @property
    def complete(self) -> bool:
        return self.error is None and not self.abandoned

    @property
    def seconds_per_token(self) -> float | None:
        """From the first token to the last, over the tokens between; None for a completion of one token."""
        return sum(self.gaps) / (self.completion_tokens - 1) if self.completion_tokens > 1 else None


class Stream:
    """Takes the lines of a stream in turn. All times are in seconds on one clock of the caller's."""

    def __init__(self, sent: float) -> None:
        """`sent` is when the request was."""
        self.text = ""
        self.done = False
        self._sent = sent
        self._arrivals: list[float] = []
        self._ended: float | None = None
        self._usage: dict[str, Any] = {}

    def feed(self, line: bytes, now: float) -> None:
        """One line of the body, which came at `now`. Raises StreamError."""
        name, _, value = line.strip().partition(b":")
        if name != b"data":
            return  # Blank lines, comments that keep proxies awake, and fields that these APIs don't use.
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
        """The whole answer, when its last line has come. Raises StreamError if it isn't whole."""
        if not self.done:
            raise StreamError("the stream ended without [DONE]")
        if "completion_tokens" not in self._usage:
            raise StreamError("the server sent no token counts, though stream_options.include_usage asked for them")
        tokens = int(self._usage["completion_tokens"])
        # A last event without text is news of a token only where a token is missing: one that ends the completion is
        # counted and has no text, while other servers send the finish reason after the last token.
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
        )

    def broken(self, began: float, now: float, error: str | None) -> Answer:
        """What there is of an answer that failed, or that was abandoned if `error` is None."""
        return Answer(
            began=began,
            seconds=now - self._sent,
            ttft=self._arrivals[0] - self._sent if self._arrivals else None,
            gaps=[after - before for before, after in pairwise(self._arrivals)],
            error=error,
            abandoned=error is None,
        )
