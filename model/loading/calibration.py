"""The scales of an FP8 KV cache, measured on keys and values that the model itself computes.

The largest e4m3 number is 448. Keys and values of some heads are far larger, those of others far smaller, so the cache
stores each number divided by its head's scale.
"""

import torch
from torch import Tensor

from kernels.backend import KVCache
from model.batch import batch_layout
from model.contract import Chunk
from model.decoder import Decoder
from model.loading.cache import make_cache

MEASURED_TOKENS = 256
SEQUENCES = 4
"""Number of sequences among which the tokens are divided: the first tokens of a sequence have keys unlike any others,
so several beginnings are measured."""
MARGIN = 4.0
"""Factor by which later keys and values may exceed the largest one measured before they are clamped.

Real text does exceed it. A wide margin costs almost nothing: e4m3 is a floating-point format, whose relative precision
at a quarter of its range is the same as at the top.
"""
LARGEST = torch.finfo(torch.float8_e4m3fn).max
SMALLEST = 2.0**-24
"""Lower bound of a measured range: a range of 0 would give a scale of 0, and the cache divides by scales."""


@torch.inference_mode()
def calibrate(decoder: Decoder, block_size: int) -> Tensor:
    """Scales [layers, 2, kv_heads] float32 of keys (0) and values (1), on the decoder's device.

    Each scale is MARGIN / 448 times the largest magnitude that the head has in a batch of random tokens. The tokens are
    the same at every call.
    """
    spec, device = decoder.spec, decoder.weights.device
    length = min(MEASURED_TOKENS // SEQUENCES, spec.max_context)
    each = -(-length // block_size)
    blocks = SEQUENCES * each
    cache = make_cache(spec, blocks=blocks, block_size=block_size, dtype=decoder.weights.dtype, device=device)
    tokens = torch.randint(spec.vocab_size, (SEQUENCES * length,), generator=torch.Generator().manual_seed(0))
    chunks = [Chunk([0] * length, 0, range(index * each, (index + 1) * each)) for index in range(SEQUENCES)]
    layout = batch_layout(chunks, block_size, device)
    decoder.forward(tokens.to(device), layout, cache)
    ranges = [
        stored.flatten(0, 1)[layout.slots].abs().amax((0, 2)).float()
        for layer in cache.layers
        for stored in (layer.keys, layer.values)
    ]
    return torch.stack(ranges).clamp(min=SMALLEST).mul(MARGIN / LARGEST).view(len(spec.layers), 2, -1)


def set_scales(cache: KVCache, scales: Tensor) -> None:
    """Set the scales [layers, 2, kv_heads] of an FP8 cache that holds no tokens yet.

    Raises ValueError if the cache has no scales.
    """
    for layer, (keys, values) in zip(cache.layers, scales, strict=True):
        if layer.key_scales is None or layer.value_scales is None:
            raise ValueError("the cache stores numbers as they are: it has no scales")
        layer.key_scales.copy_(keys)
        layer.value_scales.copy_(values)
