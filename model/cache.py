"""The paged KV cache and its size. It knows bytes and blocks, not who uses them, nor how memory is measured."""

from dataclasses import dataclass

import torch

from kernels.backend import KVCache
from model.spec import DecoderSpec

NODE_BYTES = 64 * 2**10
KERNELS_A_LAYER = 16
"""What a captured graph may take for each of its kernels, and how many of them a layer may have: ample guesses."""


class CacheSizeError(ValueError):
    """The memory for the KV cache does not hold a single block."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A GPU's memory in bytes, once the weights are in it and the largest step has been computed."""

    total: int
    used: int
    """By everything on the device, the step's working memory included."""
    working: int
    """Of that, the step's working memory."""


def cache_bytes_left(memory: DeviceMemory, share: float, *, graphs: int, layers: int) -> int:
    """Bytes of a share of a GPU's memory that are left for the cache, beside so many captured graphs of a decoder.

    The graphs' activations have a pool of their own, and a decoding step's are less than the largest step's. Beside
    them the driver keeps a description of every kernel.
    """
    room = memory.working + graphs * layers * KERNELS_A_LAYER * NODE_BYTES if graphs else 0
    return max(int(memory.total * share) - memory.used - room, 0)


def block_bytes(spec: DecoderSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block: keys and values of `block_size` tokens in every layer."""
    return 2 * len(spec.layers) * block_size * spec.kv_heads * spec.head_dim * dtype.itemsize


def blocks_within(available: int, one: int) -> int:
    """How many blocks of `one` bytes `available` bytes hold. Raises CacheSizeError if not a single one."""
    if available < one:
        raise CacheSizeError(f"{available} bytes for the KV cache hold no block: one takes {one} bytes")
    return available // one


def useful_blocks(block_size: int, max_context: int, max_running: int) -> int:
    """How many blocks `max_running` requests of `max_context` tokens could fill."""
    return max_running * -(-max_context // block_size)


def make_cache(spec: DecoderSpec, *, blocks: int, block_size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
    """A cache for a decoder of `spec`."""
    return KVCache(
        layers=len(spec.layers),
        blocks=blocks,
        block_size=block_size,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        dtype=dtype,
        device=device,
    )
