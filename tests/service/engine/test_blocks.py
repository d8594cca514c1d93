from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.sampling_params import SamplingParams
from service.engine.blocks import BlockPool, PoolError, block_key, root_key
from service.engine.request import Request

TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=8)


def make_request(prompt: list[int], salt: str = "") -> Request:
    return Request(0, prompt, SamplingParams(max_tokens=8), salt)


def hold(pool: BlockPool, prompt: list[int], salt: str = "") -> Request:
    """A request that found what it could, got the rest fresh, and has computed and published it all."""
    request = make_request(prompt, salt)
    found = pool.match(request)
    fresh = pool.allocate(pool.blocks_for(len(prompt)) - len(found), found)
    assert fresh is not None
    request.blocks, request.published = array("i", found + fresh), len(found)
    pool.publish(request, len(prompt))
    return request


def found(pool: BlockPool, prompt: list[int], salt: str = "") -> int:
    """How many blocks a prompt finds when one more token follows it."""
    return len(pool.match(make_request([*prompt, 0], salt)))


def test_allocation_is_all_or_nothing() -> None:
    pool = BlockPool(4, 2)
    first = make_request([1])
    first.blocks = array("i", pool.allocate(3) or [])
    assert len(set(first.blocks)) == 3
    assert pool.allocate(2) is None
    assert (pool.available, pool.used) == (1, 3)
    pool.check([first])


def test_allocation_keeps_the_reserve() -> None:
    pool = BlockPool(4, 2)
    assert pool.allocate(2, reserve=3) is None
    assert pool.allocate(2, reserve=2) is not None


def test_idle_blocks_cannot_be_both_shared_and_fresh() -> None:
    pool = BlockPool(3, 2)
    pool.release(hold(pool, [1, 2, 3, 4]))
    shared = pool.match(make_request([1, 2, 3, 4, 5]))
    assert len(shared) == 2
    assert pool.allocate(2, shared) is None
    assert pool.allocate(1, shared) is not None


def test_full_blocks_are_found_and_shared() -> None:
    pool = BlockPool(8, 2)
    first = hold(pool, [1, 2, 3, 4, 5])
    second = hold(pool, [1, 2, 3, 4, 6])
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    assert pool.used == 4
    pool.release(first)
    pool.check([second])
    assert pool.used == 3
    pool.release(second)
    pool.check([])
    assert pool.used == 0
    assert found(pool, [1, 2, 3, 4]) == 2


def test_a_match_leaves_a_token_to_compute() -> None:
    pool = BlockPool(8, 2)
    hold(pool, [1, 2, 3, 4])
    assert len(pool.match(make_request([1, 2, 3, 4]))) == 1
    assert len(pool.match(make_request([1, 2, 3]))) == 1
    assert len(pool.match(make_request([1, 2]))) == 0


def test_a_match_covers_generated_tokens() -> None:
    pool = BlockPool(8, 2)
    hold(pool, [1, 2, 3, 4])
    request = make_request([1])
    request.output += [2, 3, 4, 5]
    assert len(pool.match(request)) == 2


def test_only_computed_blocks_are_published() -> None:
    pool = BlockPool(8, 2)
    request = make_request([1, 2, 3, 4, 5, 6])
    request.blocks = array("i", pool.allocate(3) or [])
    pool.publish(request, 3)
    assert found(pool, [1, 2, 3, 4, 5, 6]) == 1
    pool.publish(request, 6)
    assert found(pool, [1, 2, 3, 4, 5, 6]) == 3


def test_salts_do_not_share() -> None:
    pool = BlockPool(8, 2)
    hold(pool, [1, 2, 3, 4], salt="a")
    assert found(pool, [1, 2, 3, 4], salt="a") == 2
    assert found(pool, [1, 2, 3, 4], salt="b") == 0
    assert found(pool, [1, 2, 3, 4]) == 0


def test_equal_blocks_behind_different_prefixes_are_different() -> None:
    pool = BlockPool(8, 2)
    hold(pool, [1, 2, 3, 4])
    assert found(pool, [1, 9, 3, 4]) == 0
    assert found(pool, [3, 4]) == 0


def test_the_content_of_a_block_is_cached_once() -> None:
    pool = BlockPool(8, 2)
    first, second = make_request([1, 2, 3]), make_request([1, 2, 3])
    for request in (first, second):
        request.blocks = array("i", pool.allocate(2) or [])
    pool.publish(first, 3)
    pool.publish(second, 3)
    pool.check([first, second])
    pool.release(second)
    pool.release(first)
    pool.check([])
    assert found(pool, [1, 2]) == 1


@given(TOKENS, TOKENS, TOKENS, TOKENS)
def test_the_key_depends_on_the_whole_prefix(a: list[int], b: list[int], c: list[int], d: list[int]) -> None:
    def key(*blocks: list[int]) -> bytes:
        parent = root_key("")
        for tokens in blocks:
            parent = block_key(parent, tokens)
        return parent

    assert (key(a, b) == key(c, d)) == ((a, b) == (c, d))
    assert key(a) != key(a, b)


def test_the_key_of_a_block_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counting_key(parent: bytes, tokens: list[int]) -> bytes:
        calls.append(len(tokens))
        return block_key(parent, tokens)

    monkeypatch.setattr("service.engine.blocks.block_key", counting_key)
    pool = BlockPool(8, 2)
    request = make_request([1, 2, 3, 4, 5])
    for _ in range(3):
        pool.match(request)
    request.blocks = array("i", pool.allocate(3) or [])
    pool.publish(request, 5)
    assert calls == [2, 2]
    request.output.append(6)
    pool.publish(request, 6)
    pool.release(request)
    pool.match(request)
    assert calls == [2, 2, 2]


def test_free_blocks_are_taken_before_cached_ones() -> None:
    pool = BlockPool(4, 2)
    pool.release(hold(pool, [1, 2, 3, 4]))
    assert pool.allocate(2) is not None
    assert found(pool, [1, 2, 3, 4]) == 2


def test_the_least_recently_used_chain_is_evicted_first() -> None:
    pool = BlockPool(4, 2)
    pool.release(hold(pool, [1, 2]))
    pool.release(hold(pool, [3, 4]))
    pool.release(hold(pool, [5, 6]))
    pool.release(hold(pool, [1, 2, 7]))
    assert pool.allocate(2) is not None
    assert [found(pool, prompt) for prompt in ([1, 2], [3, 4], [5, 6])] == [1, 0, 1]
    assert pool.allocate(1) is not None
    assert [found(pool, prompt) for prompt in ([1, 2], [5, 6])] == [1, 0]


def test_the_tail_of_a_chain_is_evicted_before_its_head() -> None:
    pool = BlockPool(6, 2)
    pool.release(hold(pool, [1, 2, 3, 4, 5, 6]))
    pool.release(hold(pool, [1, 2, 3, 4, 7, 8]))
    assert pool.allocate(2) is not None
    left = []
    while pool.allocate(1):
        left.append((found(pool, [1, 2, 3, 4, 5, 6]), found(pool, [1, 2, 3, 4, 7, 8])))
    assert left == [(2, 3), (2, 2), (1, 1), (0, 0)]


def test_owned_blocks_are_not_evicted() -> None:
    pool = BlockPool(2, 2)
    owner = hold(pool, [1, 2, 3, 4])
    assert pool.allocate(1) is None
    pool.check([owner])


def test_nobody_finds_what_a_failed_request_held() -> None:
    pool = BlockPool(4, 2)
    first = hold(pool, [1, 2, 3])
    second = hold(pool, [1, 2, 4])
    pool.discard(first)
    pool.check([second])
    assert found(pool, [1, 2]) == 0
    pool.release(second)
    pool.check([])
    assert pool.available == 4


def test_the_check_sees_a_lost_block() -> None:
    pool = BlockPool(4, 2)
    pool.allocate(1)
    with pytest.raises(PoolError, match="reference counts"):
        pool.check([])
