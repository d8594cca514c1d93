"""How large the paged KV cache is made. It knows bytes and blocks, not who uses them."""

import torch

from model.spec import DecoderSpec

SHARE_OF_FREE_MEMORY = 0.25
"""On a CPU the rest stays with the page cache and with whatever else runs on the machine."""


class CacheSizeError(ValueError):
    """The memory for the KV cache does not hold a single block."""


def block_bytes(spec: DecoderSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block: keys and values of `block_size` tokens in every layer."""
    return 2 * len(spec.layers) * block_size * spec.kv_heads * spec.head_dim * dtype.itemsize


def cache_blocks(
    spec: DecoderSpec,
    *,
    block_size: int,
    dtype: torch.dtype,
    budget: int | None,
    free_memory: int,
    max_context: int,
    max_running: int,
) -> int:
    """How many blocks to make: what `budget` bytes hold, or else a share of the free memory.

    Without a budget no more is taken than `max_running` requests of `max_context` tokens could fill.
    Raises CacheSizeError if not a single block fits.
    """
    size = block_bytes(spec, block_size, dtype)
    if budget is not None:
        blocks = budget // size
    else:
        most = max_running * -(-max_context // block_size)
        blocks = min(int(free_memory * SHARE_OF_FREE_MEMORY) // size, most)
    if blocks < 1:
        available = budget if budget is not None else int(free_memory * SHARE_OF_FREE_MEMORY)
        raise CacheSizeError(f"{available} bytes for the KV cache hold no block: one takes {size} bytes")
    return blocks
