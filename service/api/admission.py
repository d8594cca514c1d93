"""How many completions may be open at once, and whether new ones are taken at all. Knows nothing of what they are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.api.errors import ApiError
from service.api.places import Places


class Admission:
    """Counts open completions against a bound; the same counts queue and batch, so that it needs no engine."""

    def __init__(self, capacity: int, places: Places) -> None:
        """At most `capacity` completions are open, running and waiting, in all processes that share `places`."""
        self.capacity = capacity
        self.draining = False
        self._places = places

    @property
    def open(self) -> int:
        """Completions that are open in this process."""
        return self._places.taken

    def drain(self) -> None:
        """From now on take no new requests; those at work go on."""
        self.draining = True

    def check(self) -> None:
        """Refuse with 503 while draining, and with 429 while no place is free.

        For the moment when a request arrives: later it is in flight.
        """
        if self.draining:
            raise ApiError(503, "The server is shutting down.", code="draining", retry_after=5)
        if self._places.taken_by_all >= self.capacity:
            raise _full()

    @contextmanager
    def admit(self, count: int) -> Iterator[Callable[[], None]]:
        """Hold places for `count` completions; 429 if there are not as many.

        What it gives frees one of them: for a completion that ended, even if its client has not read it.
        """
        if not self._places.take(count, self.capacity):
            raise _full()
        held = count

        def free() -> None:
            nonlocal held
            held -= 1
            self._places.give(1)

        try:
            yield free
        finally:
            self._places.give(held)


def _full() -> ApiError:
    return ApiError(429, "The queue is full; try again later.", code="queue_full", retry_after=1)
