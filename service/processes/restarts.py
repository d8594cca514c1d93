"""Restart policy: how often a process that died is started again, and after which wait."""

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Bounds of restarting: number, window, and wait."""

    limit: int = 5
    """Restarts within the window; the next death is final."""
    window_seconds: float = 600.0
    backoff_seconds: float = 0.5
    """Wait before the first restart, in seconds; it doubles with each further one in the window."""


DEFAULT_RESTARTS = RestartPolicy()


class Restarts:
    """The recent restarts of one process."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._recent: deque[float] = deque()

    def after_death(self, now: float) -> float | None:
        """Seconds to wait before starting the process again, or None for never; `now` is in seconds too."""
        while self._recent and self._recent[0] <= now - self._policy.window_seconds:
            self._recent.popleft()
        if len(self._recent) >= self._policy.limit:
            return None
        self._recent.append(now)
        return self._policy.backoff_seconds * 2.0 ** (len(self._recent) - 1)
