"""The KV cache is made as large as it was asked to be, or as memory and demand allow."""

import pytest
import torch

from model.cache import SHARE_OF_FREE_MEMORY, CacheSizeError, block_bytes, cache_blocks
from model.spec import DecoderSpec, LayerSpec

SPEC = DecoderSpec(
    family="llama", vocab_size=10, hidden_size=8, layers=(LayerSpec(),) * 3, heads=4, kv_heads=2, head_dim=2,
    mlp_size=8, max_context=64, attention_scale=1.0,
)  # fmt: skip
BLOCK = 2 * 3 * 16 * 2 * 2 * 4


def blocks(budget: int | None = None, free: int = 0, running: int = 4) -> int:
    return cache_blocks(
        SPEC, block_size=16, dtype=torch.float32, budget=budget, free_memory=free, max_context=64, max_running=running
    )


def test_a_block_holds_keys_and_values_of_every_layer() -> None:
    assert block_bytes(SPEC, 16, torch.float32) == BLOCK
    assert block_bytes(SPEC, 16, torch.bfloat16) == BLOCK // 2


def test_a_budget_is_kept_to_the_block() -> None:
    assert blocks(budget=10 * BLOCK) == 10
    assert blocks(budget=10 * BLOCK - 1) == 9


def test_without_a_budget_a_share_of_memory_but_no_more_than_can_be_used() -> None:
    assert blocks(free=int(5 * BLOCK / SHARE_OF_FREE_MEMORY)) == 5
    assert blocks(free=10**12, running=4) == 4 * 64 // 16


@pytest.mark.parametrize("memory", [{"budget": BLOCK - 1}, {"free": BLOCK}])
def test_memory_for_no_block_is_an_error(memory: dict[str, int]) -> None:
    with pytest.raises(CacheSizeError, match=f"one takes {BLOCK} bytes"):
        blocks(**memory)
