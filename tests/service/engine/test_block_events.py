import hashlib

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from model.sampling_params import SamplingParams
from service.engine.block_events import (
    AllBlocksCleared,
    BlockEvent,
    BlockEvents,
    BlockRemoved,
    BlockStored,
    block_hash,
    encoded,
)
from service.engine.blocks import BlockPool, block_key, root_key
from service.engine.request import Request

SIZE = 2


class Router:
    """What a router knows of one replica: the tokens of each block, and the block before it."""

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[int | None, tuple[int, ...]]] = {}

    def follow(self, events: list[BlockEvent]) -> None:
        for event in events:
            match event:
                case BlockStored():
                    parent = event.parent_block_hash
                    assert len(event.token_ids) == SIZE * len(event.block_hashes)
                    assert len(event.extra_keys) == len(event.block_hashes)
                    for index, name in enumerate(event.block_hashes):
                        assert name not in self.blocks
                        self.blocks[name] = (parent, tuple(event.token_ids[index * SIZE :][:SIZE]))
                        parent = name
                case BlockRemoved():
                    for name in event.block_hashes:
                        del self.blocks[name]
                case AllBlocksCleared():
                    self.blocks.clear()


def request(prompt: list[int], salt: str = "") -> Request:
    return Request(0, prompt, SamplingParams(max_tokens=8), salt)


def admitted(pool: BlockPool, prompt: list[int], salt: str = "") -> Request:
    """A request that has computed and published its prompt."""
    new = request(prompt, salt)
    assert pool.admit(new, reserve=0)
    pool.publish(new, len(prompt))
    return new


@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=9), st.booleans()), max_size=20))
def test_a_router_that_follows_the_events_knows_what_can_be_found(prompts: list[tuple[list[int], bool]]) -> None:
    events = BlockEvents(SIZE)
    pool, router = BlockPool(6, SIZE, events), Router()
    for prompt, fails in prompts:
        ending = admitted(pool, prompt)
        pool.discard(ending) if fails else pool.release(ending)
        router.follow(events.take())
        assert set(router.blocks) == {block_hash(key) for key in pool._found_under}
        for name, (parent, tokens) in router.blocks.items():
            before = {block_hash(key): key for key in pool._found_under} | {None: root_key("")}
            if parent in before:  # A parent may be evicted before the block that follows it.
                assert name == block_hash(block_key(before[parent], tokens))


def test_blocks_that_follow_each_other_are_one_event() -> None:
    events = BlockEvents(SIZE)
    pool = BlockPool(4, SIZE, events)
    first = admitted(pool, [1, 2, 3, 4, 5])
    assert events.take() == [
        AllBlocksCleared(),
        BlockStored([block_hash(key) for key in first.chain[:2]], None, [1, 2, 3, 4], SIZE, extra_keys=[None, None]),
    ]
    second = admitted(pool, [1, 2, 3, 4, 6, 7])
    stored = BlockStored([block_hash(second.chain[2])], block_hash(first.chain[1]), [6, 7], SIZE, extra_keys=[None])
    assert events.take() == [stored]
    assert events.take() == []


def test_a_hash_is_the_end_of_a_key_and_stays_the_same_over_restarts() -> None:
    key = block_key(root_key(""), [1, 2])
    assert block_hash(key) == int.from_bytes(key, "big") % 2**64 == 0xDE43B1C6CAC6B89A


def test_a_salt_is_named_by_its_digest_beside_the_first_block() -> None:
    events = BlockEvents(SIZE)
    admitted(BlockPool(4, SIZE, events), [1, 2, 3, 4], "secret")
    _, stored = events.take()
    assert isinstance(stored, BlockStored)
    assert stored.extra_keys == [[hashlib.sha256(b"secret").hexdigest()[:16]], None]
    assert b"secret" not in encoded([stored], 0.0, "map")


EVENTS: list[BlockEvent] = [
    AllBlocksCleared(),
    BlockStored([2**64 - 1, 5], 7, [1, 2, 3, 4], SIZE, extra_keys=[None, None]),
    BlockRemoved([5]),
]


def test_events_as_maps() -> None:
    """As a vLLM of 0.26 was seen to send them."""
    assert msgspec.msgpack.decode(encoded(EVENTS, 1.5, "map")) == [
        1.5,
        [
            {"type": "AllBlocksCleared"},
            {
                "type": "BlockStored", "block_hashes": [2**64 - 1, 5], "parent_block_hash": 7,
                "token_ids": [1, 2, 3, 4], "block_size": 2, "lora_id": None, "medium": "GPU", "lora_name": None,
                "extra_keys": [None, None], "group_idx": 0, "kv_cache_spec_kind": "full_attention",
            },
            {"type": "BlockRemoved", "block_hashes": [5], "medium": "GPU", "group_idx": 0},
        ],
        0,
    ]  # fmt: skip


class OlderEvent(msgspec.Struct, array_like=True, tag=True):
    """The events of a vLLM before 0.24, with the fields that all of its versions since 0.11 have."""


class OlderStored(OlderEvent, tag="BlockStored"):
    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None


class OlderRemoved(OlderEvent, tag="BlockRemoved"):
    block_hashes: list[int | bytes]
    medium: str | None


class OlderCleared(OlderEvent, tag="AllBlocksCleared"):
    pass


class OlderBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[OlderStored | OlderRemoved | OlderCleared]
    data_parallel_rank: int | None = None


def test_events_as_arrays() -> None:
    batch = msgspec.msgpack.decode(encoded(EVENTS, 1.5, "array"), type=OlderBatch)
    assert batch == OlderBatch(
        1.5, [OlderCleared(), OlderStored([2**64 - 1, 5], 7, [1, 2, 3, 4], 2, None, "GPU"), OlderRemoved([5], "GPU")], 0
    )
