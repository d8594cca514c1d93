"""The KV cache is made as large as it was asked to be, or as memory and demand allow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.loading.cache import (
    CacheSizeError,
    DeviceMemory,
    block_bytes,
    blocks_within,
    cache_bytes_left,
    useful_blocks,
)
from model.spec import DecoderSpec, LayerSpec
from tests.dummies import empty_cache, make_decoder

SPEC = DecoderSpec(
    family="llama", vocab_size=10, hidden_size=8, layers=(LayerSpec(),) * 3, heads=4, kv_heads=2, head_dim=2,
    mlp_size=8, max_context=64, attention_scale=1.0,
)  # fmt: skip
BLOCK = 2 * 3 * 16 * 2 * 2 * 4


def test_a_block_holds_keys_and_values_of_every_layer() -> None:
    assert block_bytes(SPEC, 16, torch.float32) == BLOCK
    assert block_bytes(SPEC, 16, torch.bfloat16) == BLOCK // 2
    assert block_bytes(SPEC, 16, torch.float8_e4m3fn) == BLOCK // 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
def test_a_cache_takes_what_was_reckoned(dtype: torch.dtype) -> None:
    decoder = make_decoder()
    cache = empty_cache(decoder, blocks=7, block_size=4, dtype=dtype)
    taken = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert taken == 7 * block_bytes(decoder.spec, 4, dtype)


@given(st.integers(0, 100 * BLOCK))
def test_memory_is_filled_to_the_block(available: int) -> None:
    if available < BLOCK:
        with pytest.raises(CacheSizeError, match=f"{available} bytes .* one takes {BLOCK} bytes"):
            blocks_within(available, BLOCK)
    else:
        blocks = blocks_within(available, BLOCK)
        assert blocks * BLOCK <= available < (blocks + 1) * BLOCK


def test_no_more_is_of_use_than_the_running_requests_could_fill() -> None:
    assert useful_blocks(16, 64, 4) == 16
    assert useful_blocks(16, 65, 4) == 20


@given(
    total=st.integers(1, 10**12),
    used=st.integers(0, 10**12),
    working=st.integers(0, 10**10),
    share=st.floats(0.01, 1.0),
    graphs=st.integers(0, 20),
    layers=st.integers(1, 100),
)
def test_a_share_of_a_gpu_is_never_exceeded(
    total: int, used: int, working: int, share: float, graphs: int, layers: int
) -> None:
    memory = DeviceMemory(total=total, used=used, working=working)
    left = cache_bytes_left(memory, share, graphs=graphs, layers=layers)
    assert left >= 0
    assert left == 0 or left + used + (working if graphs else 0) <= total * share
    assert cache_bytes_left(memory, share, graphs=0, layers=layers) >= left
    if not graphs:
        assert left == max(int(total * share) - used, 0)
