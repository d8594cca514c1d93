"""Which request owns which block of the KV cache, and which blocks can be found again by their content.

Knows block numbers and token ids; it never sees a tensor, and does not know why a request needs blocks.

A block is in one of three states: free (nobody's, content worthless), owned (by one request or, where
they share a prefix, by several), or idle (nobody's, but kept under its key for the next that asks).
"""

import hashlib
import struct
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from service.engine.request import Request


class PoolError(Exception):
    """The pool's books do not balance; only a bug in the engine can cause it."""


def block_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a full block: SHA-256 of its parent's key and its own tokens as little-endian int64.

    So a key stands for every token from the start of the request, and equal keys mean equal content.
    """
    return hashlib.sha256(parent + struct.pack(f"<{len(tokens)}q", *tokens)).digest()


def root_key(salt: str) -> bytes:
    """The parent of a request's first block."""
    return hashlib.sha256(salt.encode()).digest()


class BlockPool:
    """Blocks by reference count, with a prefix cache. Every operation is O(1) a block it touches."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._owners = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._found_under: dict[bytes, int] = {}
        self._free = list(reversed(range(num_blocks)))
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that somebody owns."""
        return self.num_blocks - self.available

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold this many tokens."""
        return -(-tokens // self.block_size)

    def match(self, request: Request) -> list[int]:
        """The cached blocks that hold the longest prefix of a request, in order. Takes no ownership.

        At least one token is left out, because the next token's logits come from computing one.
        """
        full = (request.known - 1) // self.block_size
        self._extend_chain(request, full)
        found = []
        for key in request.chain[:full]:
            block = self._found_under.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def admit(self, request: Request, reserve: int) -> bool:
        """Give a request blocks for all it knows, cached ones as far as there are any, and begin behind those.

        All or nothing: False, and nothing has changed, if fewer than `reserve` blocks would stay available.
        """
        found = self.match(request)
        fresh = self.allocate(self.blocks_for(request.known) - len(found), shared=found, reserve=reserve)
        if fresh is None:
            return False
        request.blocks = found + fresh
        request.published = len(found)
        request.computed = len(found) * self.block_size
        return True

    def grow(self, request: Request) -> bool:
        """Give a request blocks for all its tokens; False if there are not as many, and it has what there was."""
        while len(request.blocks) < self.blocks_for(request.length):
            fresh = self.allocate(1)
            if fresh is None:
                return False
            request.blocks += fresh
        return True

    def can_grow(self, requests: Iterable[Request]) -> bool:
        """Whether there are blocks for all the tokens of all these requests."""
        missing = sum(self.blocks_for(request.length) - len(request.blocks) for request in requests)
        return missing <= self.available

    def allocate(self, count: int, shared: Sequence[int] = (), reserve: int = 0) -> list[int] | None:
        """Take ownership of the blocks `shared` and of `count` fresh ones; return the fresh ones.

        All or nothing: None, and nothing has changed, if fewer than `reserve` blocks would stay available.
        """
        idle = sum(self._owners[block] == 0 for block in shared)
        if count + idle + reserve > self.available:
            return None
        for block in shared:
            self._idle.pop(block, None)
            self._owners[block] += 1
        return [self._take() for _ in range(count)]

    def publish(self, request: Request, computed: int) -> None:
        """Let others find the full blocks among the first `computed` tokens of a request, all of them known.

        Where equal content is cached already, that stays and the request's own copy remains private.
        """
        full = computed // self.block_size
        self._extend_chain(request, full)
        for index in range(request.published, full):
            key, block = request.chain[index], request.blocks[index]
            if key not in self._found_under:
                self._found_under[key] = block
                self._keys[block] = key
        request.published = max(request.published, full)

    def release(self, request: Request) -> None:
        """End a request's ownership. What was published stays findable until the space is needed."""
        # Last block first: idle blocks are evicted in this order, and a chain is useless without its head.
        for block in reversed(request.blocks):
            self._owners[block] -= 1
            if self._owners[block] == 0:
                if self._keys[block] is None:
                    self._free.append(block)
                else:
                    self._idle[block] = None
        request.blocks = []
        request.published = 0

    def discard(self, request: Request) -> None:
        """Release the blocks of a failed request, and let nobody find what they hold."""
        for block in request.blocks:
            self._forget(block)
        self.release(request)

    def check(self, requests: Iterable[Request]) -> None:
        """Compare the books with all requests that hold blocks. O(pool), for tests; raises PoolError."""
        owners = Counter(block for request in requests for block in request.blocks)
        if [owners[block] for block in range(self.num_blocks)] != self._owners:
            raise PoolError("reference counts differ from the requests' blocks")
        unowned = [*self._free, *self._idle]
        if sorted([*unowned, *owners]) != list(range(self.num_blocks)):
            raise PoolError("free, idle and owned blocks do not add up to the pool")
        if {key: block for block, key in enumerate(self._keys) if key is not None} != self._found_under:
            raise PoolError("the prefix cache and the blocks' keys differ")
        if any(self._keys[block] is not None for block in self._free):
            raise PoolError("a free block can be found in the prefix cache")
        if any(self._keys[block] is None for block in self._idle):
            raise PoolError("an idle block cannot be found in the prefix cache")

    def _take(self) -> int:
        """Own a block that nobody owns: a free one, else the idle one that was used longest ago."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        self._owners[block] = 1
        return block

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._found_under[key]
            self._keys[block] = None

    def _extend_chain(self, request: Request, full: int) -> None:
        chain = request.chain
        for index in range(len(chain), full):
            parent = chain[-1] if chain else root_key(request.cache_salt)
            start = index * self.block_size
            chain.append(block_key(parent, request.tokens(start, start + self.block_size)))
