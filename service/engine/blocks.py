"""The pool of KV cache blocks: which request owns which block, and which blocks can be found again by their content.

It knows block numbers and token ids. It never sees a tensor, and does not know why a request needs blocks.

A block is in one of three states. A free block has no owner, and its content is worthless. An owned block belongs to
one request, or to several that share a prefix. An idle block has no owner either, but is kept under its key so that a
later request can find it.
"""

import hashlib
import struct
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from service.engine.block_events import BlockEvents
from service.engine.request import Request


class PoolError(Exception):
    """The pool's books do not balance; only a bug in the engine can cause it."""


def block_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a full block: SHA-256 of its parent's key and its own tokens as little-endian int64.

    A key therefore stands for every token from the start of the request, and equal keys mean equal content.
    """
    return hashlib.sha256(parent + struct.pack(f"<{len(tokens)}q", *tokens)).digest()


def root_key(salt: str) -> bytes:
    """The key that stands as parent of a request's first block; it differs between cache salts."""
    return hashlib.sha256(salt.encode()).digest()


class BlockPool:
    """Reference-counted blocks with a prefix cache. Every operation costs O(1) for each block it touches."""

    def __init__(self, num_blocks: int, block_size: int, events: BlockEvents | None = None) -> None:
        """`events` is told what can be found, and what no longer can be."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._events = events
        self._owners = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._found_under: dict[bytes, int] = {}
        self._free = list(reversed(range(num_blocks)))
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Number of blocks without an owner: free and idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Number of blocks with at least one owner."""
        return self.num_blocks - self.available

    def blocks_for(self, tokens: int) -> int:
        """Number of blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def match(self, request: Request) -> list[int]:
        """The cached blocks that hold the longest reusable prefix of a request, in order. Takes no ownership."""
        full = request.reusable // self.block_size
        self._extend_chain(request, full)
        found = []
        for key in request.chain[:full]:
            block = self._found_under.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def admit(self, request: Request, reserve: int) -> bool:
        """Give a request the blocks for all its known tokens and set `computed` behind those found in the prefix cache.

        All or nothing: the result is False, and nothing has changed, if fewer than `reserve` blocks would stay
        available.
        """
        found = self.match(request)
        fresh = self.allocate(self.blocks_for(request.known) - len(found), shared=found, reserve=reserve)
        if fresh is None:
            return False
        request.blocks = array("i", found + fresh)
        request.published = len(found)
        request.computed = len(found) * self.block_size
        return True

    def grow(self, request: Request, drafts: int = 0) -> bool:
        """Give a request the blocks for all its tokens, promised ones included, and for `drafts` more.

        The result is False if the pool runs out; the request then keeps those it got until then.
        """
        while len(request.blocks) < self.blocks_for(request.length + drafts):
            fresh = self.allocate(1)
            if fresh is None:
                return False
            request.blocks.extend(fresh)
        return True

    def full(self, request: Request) -> bool:
        """Whether a request needs another block for its next token."""
        return len(request.blocks) * self.block_size <= request.computed

    def can_grow(self, requests: Iterable[Request]) -> bool:
        """Whether the pool has enough blocks for all tokens of all these requests."""
        missing = sum(max(0, self.blocks_for(request.length) - len(request.blocks)) for request in requests)
        return missing <= self.available

    def shrink(self, request: Request) -> None:
        """Take back the blocks that a request got for drafts which were wrong. They were never published."""
        needed = self.blocks_for(request.length)
        self._disown(request.blocks[needed:])
        del request.blocks[needed:]

    def allocate(self, count: int, shared: Sequence[int] = (), reserve: int = 0) -> list[int] | None:
        """Take ownership of the blocks `shared` and of `count` fresh ones; returns the fresh ones.

        All or nothing: the result is None, and nothing has changed, if fewer than `reserve` blocks would stay
        available.
        """
        idle = sum(self._owners[block] == 0 for block in shared)
        if count + idle + reserve > self.available:
            return None
        for block in shared:
            self._idle.pop(block, None)
            self._owners[block] += 1
        return [self._take() for _ in range(count)]

    def publish(self, request: Request, computed: int) -> None:
        """Make the full blocks among the first `computed` tokens of a request findable; all these tokens must be known.

        Where a block of equal content is cached already, it stays, and the request's own copy remains private.
        """
        full = computed // self.block_size
        if full <= request.published:
            return
        self._extend_chain(request, full)
        for index in range(request.published, full):
            key, block = request.chain[index], request.blocks[index]
            if key not in self._found_under:
                self._found_under[key] = block
                self._keys[block] = key
                self._tell_stored(request, index)
        request.published = full

    def release(self, request: Request) -> None:
        """End a request's ownership of its blocks. Published blocks stay findable until their space is needed."""
        self._disown(request.blocks)
        request.blocks = array("i")
        request.published = 0

    def discard(self, request: Request) -> None:
        """Release the blocks of a failed request and make them unfindable, since their content may be wrong."""
        for block in request.blocks:
            self._forget(block)
        self.release(request)

    def check(self, requests: Iterable[Request]) -> None:
        """Compare the books with all requests that hold blocks. Costs O(pool), for tests. Raises PoolError."""
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
        """Take ownership of one available block: a free one, or else the least recently used idle one."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        self._owners[block] = 1
        return block

    def _disown(self, blocks: Sequence[int]) -> None:
        """End one owner's claim on each of `blocks`, which are in the order of their tokens."""
        # The last block goes first: idle blocks are evicted in this order, and a chain is useless without its head.
        for block in reversed(blocks):
            self._owners[block] -= 1
            if self._owners[block] == 0:
                if self._keys[block] is None:
                    self._free.append(block)
                else:
                    self._idle[block] = None

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._found_under[key]
            self._keys[block] = None
            if self._events is not None:
                self._events.removed(key)

    def _tell_stored(self, request: Request, index: int) -> None:
        if self._events is not None:
            parent = request.chain[index - 1] if index else None
            tokens = request.tokens(index * self.block_size, (index + 1) * self.block_size)
            self._events.stored(request.chain[index], parent, tokens, request.cache_salt)

    def _extend_chain(self, request: Request, full: int) -> None:
        chain = request.chain
        for index in range(len(chain), full):
            parent = chain[-1] if chain else root_key(request.cache_salt)
            start = index * self.block_size
            chain.append(block_key(parent, request.tokens(start, start + self.block_size)))
