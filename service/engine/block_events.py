"""Events of the prefix cache: blocks that can be found from now on, and blocks that no longer can be.

They have the form in which vLLM tells them to routers, which send a request to the replica that holds its prefix.
Source: vLLM, vllm/distributed/kv_events.py. Knows no sockets.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import msgspec

MEDIUM = "GPU"
"""vLLM's name for the cache that steps read, whatever memory it is in; its other names are for copies elsewhere."""
RANK = 0
"""Number of the engine among data-parallel engines, of which there is only this one."""

EventForm = Literal["map", "array"]
"""Events as maps of named fields, as vLLM sends them since 0.24, or as arrays, as it did before."""


class BlockStored(msgspec.Struct, tag=True):
    """Consecutive blocks of a request that can be found from now on. The order of the fields is that of arrays."""

    block_hashes: list[int]
    parent_block_hash: int | None
    """The block before the first one; None if that begins its request."""
    token_ids: list[int]
    """Tokens of all the blocks."""
    block_size: int
    lora_id: int | None = None
    medium: str = MEDIUM
    lora_name: str | None = None
    extra_keys: list[list[str] | None] = msgspec.field(default_factory=list)
    """For each block, what its hash depends on beside tokens; None for nothing."""
    group_idx: int = 0
    kv_cache_spec_kind: str = "full_attention"


class BlockRemoved(msgspec.Struct, tag=True):
    """Blocks that can no longer be found."""

    block_hashes: list[int]
    medium: str = MEDIUM
    group_idx: int = 0


class AllBlocksCleared(msgspec.Struct, tag=True):
    """No block can be found: a cache begins empty, and one before it may have been told of."""


BlockEvent = BlockStored | BlockRemoved | AllBlocksCleared


def encoded(events: Sequence[BlockEvent], moment: float, form: EventForm) -> bytes:
    """One batch of events as msgpack; `moment` is in Unix seconds."""
    told = events if form == "map" else [[type(event).__name__, *msgspec.structs.astuple(event)] for event in events]
    return msgspec.msgpack.encode((moment, told, RANK))


def block_hash(key: bytes) -> int:
    """The last 64 bits of a block's key, as an unsigned number."""
    return int.from_bytes(key[-8:], "big")


class BlockEvents:
    """The events since they were last taken; those of consecutive blocks are one."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._events: list[BlockEvent] = [AllBlocksCleared()]

    def take(self) -> list[BlockEvent]:
        """The events in their order; they are forgotten here."""
        events, self._events = self._events, []
        return events

    def stored(self, key: bytes, parent: bytes | None, tokens: Sequence[int], salt: str) -> None:
        """Note that a block of these tokens can be found under `key`.

        `parent` is the key of the block before it, None at the start of a request, whose cache salt is `salt`.
        """
        before = None if parent is None else block_hash(parent)
        last = self._events[-1] if self._events else None
        if before is None or not isinstance(last, BlockStored) or last.block_hashes[-1] != before:
            last = BlockStored([], before, [], self._block_size)
            self._events.append(last)
        last.block_hashes.append(block_hash(key))
        last.token_ids += tokens
        last.extra_keys.append([_digest(salt)] if salt and before is None else None)

    def removed(self, key: bytes) -> None:
        """Note that the block under `key` can no longer be found."""
        last = self._events[-1] if self._events else None
        if not isinstance(last, BlockRemoved):
            last = BlockRemoved([])
            self._events.append(last)
        last.block_hashes.append(block_hash(key))


def _digest(salt: str) -> str:
    """A digest of a salt, which is told instead of the salt because clients may keep it secret."""
    return hashlib.sha256(salt.encode()).hexdigest()[:16]
