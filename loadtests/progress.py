"""Progress on the terminal while a test is under way: a line every few seconds."""

import statistics
from collections.abc import Sequence

from loadtests.sse import Answer

LEAST_SECONDS = 5.0
LINES = 30
"""About the number of lines of a run that takes longer than LINES times LEAST_SECONDS."""


def interval(seconds: float) -> float:
    """The seconds between two lines of a run of `seconds`."""
    return max(LEAST_SECONDS, seconds / LINES)


def line(now: float, seconds: float, asked: int, answers: Sequence[Answer]) -> str:
    """The state at `now` seconds of a run of `seconds`, in which `asked` requests were sent and `answers` came.

    The time is negative during the warm-up.
    """
    clock = f"{_clock(now)} of {_clock(seconds)}" if now < seconds else "time is over"
    clock = "warm-up" if now < 0 else clock
    parts = [f"{asked - len(answers)} in flight", f"{sum(answer.complete for answer in answers)} answered"]
    if failed := sum(answer.error is not None for answer in answers):
        parts.append(f"{failed} FAILED")
    if ttfts := [answer.ttft for answer in answers if answer.ttft is not None]:
        parts.append(f"first token after {statistics.median(ttfts):.2f} s")
    if paces := [pace for answer in answers if (pace := answer.seconds_per_token)]:
        parts.append(f"{1 / statistics.median(paces):.1f} tokens/s each")
    return f"{clock:>13}  " + ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
