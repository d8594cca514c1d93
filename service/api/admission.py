"""How many completions may be open at once, and whether new ones are taken at all. Knows nothing of what they are."""

from collections.abc import Iterator
from contextlib import contextmanager

from service.api.errors import ApiError


class Admission:
    """Counts open completions against a bound; the same counts queue and batch, so that it needs no engine."""

    def __init__(self, capacity: int) -> None:
        """At most `capacity` completions are open, running and waiting together."""
        self.capacity = capacity
        self.open = 0
        self.draining = False

    def drain(self) -> None:
        """From now on take no new requests; those at work go on."""
        self.draining = True

    def check(self) -> None:
        """Refuse with 503 while draining. For the moment when a request arrives: later it is in flight."""
        if self.draining:
            raise ApiError(503, "The server is shutting down.", code="draining", retry_after=5)

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Hold places for `count` completions; 429 if there are not as many."""
        if self.open + count > self.capacity:
            raise ApiError(429, "The queue is full; try again later.", code="queue_full", retry_after=1)
        self.open += count
        try:
            yield
        finally:
            self.open -= count
