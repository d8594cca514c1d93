"""What one caller may take of the engine: completions at work, completions that wait, tokens a minute.

A caller is a label that stands for an API key; without keys everybody is one caller. Knows nothing of HTTP.
"""

from collections import Counter
from dataclasses import dataclass

import msgspec

from service.engine.messages import Refusal

MINUTE = 60.0


class CallerLimits(msgspec.Struct, frozen=True):
    """The same for every caller; None is without limit."""

    running: int | None = None
    waiting: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and completions together."""


NO_LIMITS = CallerLimits()


@dataclass(slots=True)
class _Allowance:
    """Tokens that a caller may use, refilled steadily up to a minute's worth; below 0 after a long answer."""

    tokens: float
    filled: float
    """When it was last filled, in seconds."""


class Callers:
    """Counts what each caller has, and says what it may not have beside that."""

    def __init__(self, limits: CallerLimits, max_running: int) -> None:
        """`max_running` is how many completions of all callers run at most."""
        self._limits = limits
        self._max_running = max_running if limits.running is None else min(limits.running, max_running)
        self._running: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._allowances: dict[str, _Allowance] = {}

    def refusal(self, caller: str, now: float) -> Refusal | None:
        """Why a caller may not wait for one more completion, if it may not; `now` in seconds."""
        limits = self._limits
        # What is to run in the next step waits for it as well, and does not count.
        soon = max(0, self._max_running - self._running[caller])
        if limits.waiting is not None and self._waiting[caller] >= limits.waiting + soon:
            return Refusal("key_queue_full", f"{limits.waiting} completions of this API key wait already", 1.0)
        if limits.tokens_per_minute is not None:
            missing = 1.0 - self._allowance(caller, now).tokens
            if missing > 0:
                seconds = missing * MINUTE / limits.tokens_per_minute
                words = f"this API key has used its {limits.tokens_per_minute} tokens of a minute"
                return Refusal("key_tokens_exceeded", words, seconds)
        return None

    def may_run(self, caller: str) -> bool:
        """Whether one more of a caller's completions may run."""
        return self._running[caller] < self._max_running

    def wait(self, caller: str, count: int = 1) -> None:
        """Count completions that begin to wait, or with -1 one that no longer does."""
        _add(self._waiting, caller, count)

    def run(self, caller: str, count: int = 1) -> None:
        """Count completions that begin to run, or with -1 one that no longer does."""
        _add(self._running, caller, count)

    def spend(self, caller: str, tokens: int, now: float) -> None:
        """Count tokens that were read or written for a caller."""
        if self._limits.tokens_per_minute is not None:
            self._allowance(caller, now).tokens -= tokens

    def _allowance(self, caller: str, now: float) -> _Allowance:
        rate = self._limits.tokens_per_minute
        assert rate is not None
        allowance = self._allowances.setdefault(caller, _Allowance(float(rate), now))
        refilled = allowance.tokens + (now - allowance.filled) * rate / MINUTE
        allowance.tokens, allowance.filled = min(float(rate), refilled), now
        return allowance


def _add(counts: Counter[str], caller: str, count: int) -> None:
    counts[caller] += count
    if not counts[caller]:
        del counts[caller]
