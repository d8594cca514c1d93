"""Leaders, the running requests whose prompts others wait for: equal prompts that arrive together are computed once.

Knows the keys of blocks; it does not know whether a request could run, or when it will.
"""

from service.engine.request import Request


class Leaders:
    """The running requests that have yet to publish the blocks of their prompts, by the keys of those blocks."""

    def __init__(self, block_size: int) -> None:
        """`block_size` is in tokens."""
        self._block_size = block_size
        self._expected: dict[bytes, Request] = {}
        self._keys: dict[int, list[bytes]] = {}
        """The block keys that each leader is expected to publish, by the request's id."""

    def add(self, request: Request) -> None:
        """Expect a request that has just been admitted to publish its full blocks, except the cached ones."""
        keys = [key for key in request.chain[request.published :] if key not in self._expected]
        self._expected |= dict.fromkeys(keys, request)
        self._keys[request.id] = keys

    def remove(self, request: Request) -> None:
        """Expect nothing more of a request, because it has published or never will."""
        for key in self._keys.pop(request.id, ()):
            del self._expected[key]

    def worth_waiting_for(self, request: Request, found: int) -> bool:
        """Whether a request with `found` cached leading blocks should wait for the blocks that a leader will publish.

        A leader publishes when its whole prompt is computed. Waiting pays if it spares the request at least half as
        many tokens as the leader still has to compute; a short common prefix with a much longer prompt does not.
        """
        shared = 0
        leader: Request | None = None
        for key in request.chain[found:]:
            expected = self._expected.get(key)
            if expected is None or expected is not (leader or expected):
                break
            leader = expected
            shared += self._block_size
        return leader is not None and 2 * shared >= leader.behind
