"""Limits of one caller on the engine: running completions, waiting completions, tokens a minute.

A caller is a label that stands for an API key; without keys all requests have the same caller. Knows nothing of HTTP.
"""

from collections import Counter
from dataclasses import dataclass

import msgspec

from service.engine.messages import Refusal

MINUTE = 60.0


class CallerLimits(msgspec.Struct, frozen=True):
    """Limits that hold for every caller alike; None means no limit."""

    running: int | None = None
    waiting: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and completion tokens together."""


NO_LIMITS = CallerLimits()


@dataclass(slots=True)
class _Allowance:
    """Tokens that a caller may still use: refilled steadily up to a minute's worth, below 0 after a long answer."""

    tokens: float
    filled: float
    """The moment of the last refill, in seconds."""


class Callers:
    """Counts each caller's completions and tokens, and refuses more than the limits allow."""

    def __init__(self, limits: CallerLimits, max_running: int) -> None:
        """`max_running` bounds the running completions of all callers together."""
        self._limits = limits
        self._max_running = max_running if limits.running is None else min(limits.running, max_running)
        self._running: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._allowances: dict[str, _Allowance] = {}

    def refusal(self, caller: str, now: float) -> Refusal | None:
        """The reason why a caller may not queue one more completion, or None if it may; `now` is in seconds."""
        limits = self._limits
        # Completions that the next step will admit count as waiting too, so they are allowed on top of the limit.
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
        """Add `count` to a caller's waiting completions; -1 when one stops waiting."""
        _add(self._waiting, caller, count)

    def run(self, caller: str, count: int = 1) -> None:
        """Add `count` to a caller's running completions; -1 when one stops running."""
        _add(self._running, caller, count)

    def spend(self, caller: str, tokens: int, now: float) -> None:
        """Subtract tokens, read or generated, from a caller's allowance."""
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
