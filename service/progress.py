"""A bar that tells how far a long piece of work has come. It is drawn on a terminal alone."""

import sys
import time
from collections.abc import Callable
from typing import Self, TextIO

_WIDTH = 24
"""Columns of the bar itself."""
_SECONDS = 0.1
"""Time between two drawings at least."""


class Progress:
    """Counts done items and their tokens. Leaving its `with` draws it a last time and ends its line."""

    def __init__(
        self,
        total: int,
        items: str,
        *,
        shown: bool = True,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`items` names what is counted. `done` of them were done before, and say nothing of the rate."""
        self._total, self._items = total, items
        self._stream = sys.stderr if stream is None else stream
        self._shown = shown and total > 0 and self._stream.isatty()
        self._clock = clock
        self._began = self._drawn = clock()
        self._before = self._done = done
        self._tokens = 0

    def __enter__(self) -> Self:
        self._draw()
        return self

    def __exit__(self, *exception: object) -> None:
        self._draw()
        if self._shown:
            self._stream.write("\n")
            self._stream.flush()

    def add(self, tokens: int) -> None:
        """Count one more item, for which `tokens` were generated."""
        self._done += 1
        self._tokens += tokens
        if self._clock() - self._drawn >= _SECONDS:
            self._draw()

    def line(self) -> str:
        """The bar as text."""
        seconds = self._clock() - self._began
        filled = _WIDTH * self._done // max(self._total, 1)
        new = self._done - self._before
        left = _clock_time(seconds / new * (self._total - self._done)) if new else "?"
        rate = f"{self._tokens / seconds:.0f}" if seconds > 0 else "0"
        return (
            f"{'█' * filled}{'·' * (_WIDTH - filled)} {self._done}/{self._total} {self._items}, "
            f"{_clock_time(seconds)} gone, {left} left, {rate} tokens/s"
        )

    def _draw(self) -> None:
        if self._shown:
            self._drawn = self._clock()
            self._stream.write(f"\r\x1b[K{self.line()}")
            self._stream.flush()


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
