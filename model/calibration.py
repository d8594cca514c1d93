"""The scales of an FP8 KV cache, from what the model itself writes into a cache.

e4m3 has 448 as its largest number, and keys and values of some heads go far beyond it or stay far below. A number is
stored as its quotient by its head's scale.
"""

import torch
from torch import Tensor

from kernels.backend import KVCache
from model.cache import make_cache
from model.contract import Chunk
from model.decoder import Decoder
from model.runner import batch_layout

TOKENS = 256
SEQUENCES = 4
"""Several, since the first tokens of a sequence have keys unlike any others."""
MARGIN = 4.0
"""How far text may go beyond what was seen before it is clamped; and it does go beyond. A wide margin costs next to
nothing, since e4m3 is a floating-point format, whose relative precision is the same at a quarter of its range."""
LARGEST = torch.finfo(torch.float8_e4m3fn).max
SMALLEST = 2.0**-24
"""In place of a range of 0, which is no divisor."""


@torch.inference_mode()
def calibrate(decoder: Decoder, block_size: int) -> Tensor:
    """Scales [layers, 2, kv_heads] float32, of keys and of values, on the decoder's device.

    Each is the largest magnitude in a batch of random tokens, always the same, times a margin, over 448.
    """
    spec, device = decoder.spec, decoder.weights.device
    length = min(TOKENS // SEQUENCES, spec.max_context)
    each = -(-length // block_size)
    blocks = SEQUENCES * each
    cache = make_cache(spec, blocks=blocks, block_size=block_size, dtype=decoder.weights.dtype, device=device)
    tokens = torch.randint(spec.vocab_size, (SEQUENCES * length,), generator=torch.Generator().manual_seed(0))
    chunks = [Chunk([0] * length, 0, range(index * each, (index + 1) * each), None) for index in range(SEQUENCES)]
    layout = batch_layout(chunks, block_size, device)
    decoder.forward(tokens.to(device), layout, cache)
    ranges = [
        stored.flatten(0, 1)[layout.slots].abs().amax((0, 2)).float()
        for layer in cache.layers
        for stored in (layer.keys, layer.values)
    ]
    return torch.stack(ranges).clamp(min=SMALLEST).mul(MARGIN / LARGEST).view(len(spec.layers), 2, -1)


def set_scales(cache: KVCache, scales: Tensor) -> None:
    """Let an FP8 cache that is still empty store by `scales`, [layers, 2, kv_heads]."""
    for layer, (keys, values) in zip(cache.layers, scales, strict=True):
        if layer.key_scales is None or layer.value_scales is None:
            raise ValueError("the cache stores numbers as they are: it has no scales")
        layer.key_scales.copy_(keys)
        layer.value_scales.copy_(values)
