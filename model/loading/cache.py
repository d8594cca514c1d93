"""The paged KV cache and its size, in bytes and blocks. Free memory is measured in `memory`."""

from dataclasses import dataclass

import torch

from kernels.backend import KVCache
from model.spec import DecoderSpec

NODE_BYTES = 64 * 2**10
KERNELS_A_LAYER = 16
"""Generous estimates: the driver's bytes for each kernel (node) of a captured graph, and the kernels of a layer."""


class CacheSizeError(ValueError):
    """The memory for the KV cache is too small for a single block."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A GPU's memory in bytes, measured after the weights are loaded and the largest step has run."""

    total: int
    used: int
    """Bytes in use by everything on the device, the working memory of the step included."""
    working: int
    """Bytes among `used` that are the working memory of the step."""


def cache_bytes_left(memory: DeviceMemory, share: float, *, graphs: int, layers: int) -> int:
    """Bytes left for the KV cache, at least 0, when the process may use `share` of a GPU's memory.

    Room is set aside for `graphs` captured graphs of a decoder with `layers` layers. Graphs keep their activations in a
    memory pool of their own; a captured step needs no more there than the largest step, so `memory.working` bytes are
    enough. In addition the driver keeps a description of every kernel of every graph.
    """
    room = memory.working + graphs * layers * KERNELS_A_LAYER * NODE_BYTES if graphs else 0
    return max(int(memory.total * share) - memory.used - room, 0)


def block_bytes(spec: DecoderSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block: the keys and values of `block_size` tokens in every layer."""
    return 2 * len(spec.layers) * block_size * spec.kv_heads * spec.head_dim * dtype.itemsize


def blocks_within(available: int, one: int) -> int:
    """Number of blocks of `one` bytes that fit into `available` bytes. Raises CacheSizeError if it is 0."""
    if available < one:
        raise CacheSizeError(f"{available} bytes for the KV cache hold no block: one takes {one} bytes")
    return available // one


def useful_blocks(block_size: int, max_context: int, max_running: int) -> int:
    """Number of blocks that `max_running` requests of `max_context` tokens each fill; more would never be used."""
    return max_running * -(-max_context // block_size)


def make_cache(spec: DecoderSpec, *, blocks: int, block_size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
    """Allocate a KV cache for a decoder of `spec`, uninitialised."""
    return KVCache(
        layers=len(spec.layers),
        blocks=blocks,
        block_size=block_size,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        dtype=dtype,
        device=device,
    )
