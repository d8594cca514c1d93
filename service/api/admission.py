"""Admission: how many completions may be open at once, and whether new ones are taken at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.api.errors import ApiError
from service.api.places import Places


class Admission:
    """Counts open completions, running and waiting alike, against one bound, and so needs no engine."""

    def __init__(self, capacity: int, places: Places) -> None:
        """At most `capacity` completions are open, running and waiting, in all processes that share `places`."""
        self.capacity = capacity
        self.draining = False
        self._places = places

    @property
    def open(self) -> int:
        """Number of completions that are open in this process."""
        return self._places.taken

    def drain(self) -> None:
        """Take no new requests from now on; those in flight go on."""
        self.draining = True

    def check(self) -> None:
        """Raise ApiError: 503 while draining, 429 while no place is free.

        Call it when a request arrives; later the request is in flight and must not be refused for draining.
        """
        if self.draining:
            raise ApiError(503, "The server is shutting down.", code="draining", retry_after=5)
        if self._places.taken_by_all >= self.capacity:
            raise _full()

    @contextmanager
    def admit(self, count: int) -> Iterator[Callable[[], None]]:
        """Hold places for `count` completions; raises ApiError with 429 if there are not enough.

        The function that it yields frees one place: for a completion that ended, even if its client has not read it.
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
