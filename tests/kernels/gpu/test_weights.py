"""Attention weights against the reference, over caches that are poisoned wherever no sequence owns them."""

import numpy as np
import pytest
import torch

from kernels.backend import AttentionOptions, LayerQueries
from kernels.gpu.tiles import HEAD_PARTS
from kernels.gpu.weights import BLOCK_M, attention_weights
from kernels.reference import attention_weights as reference
from tests.kernels.gpu.cases import FP8, AttentionCase, Lengths, attention_case
from tests.kernels.gpu.test_attention import DEVICE, LAUNCH, PLAIN, features

LENGTHS: Lengths = [(70, 1), (130, 9), (3, 40)]


def check(case: AttentionCase, options: AttentionOptions, heads: list[int], step: int = 1) -> None:
    starts, contexts = case.layout.query_starts.tolist(), case.layout.context_lens.tolist()
    for sequence, context in enumerate(contexts):
        rows = slice(starts[sequence], starts[sequence + 1], step)
        blocks = case.layout.block_table[sequence, : -(-context // case.cache.keys.shape[1])]
        q, positions = case.q[rows].contiguous(), case.layout.positions[rows].contiguous()
        with np.errstate(all="ignore"):
            got = attention_weights(LAUNCH, q, positions, case.cache, blocks, heads, options)
        expected = reference(LayerQueries(q.float(), case.cache, heads, options), positions, blocks)
        tolerance = 1e-5 if q.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("feature", features(4))
@pytest.mark.parametrize("cache_dtype", [None, FP8], ids=["same", "fp8"])
def test_features(feature: str, cache_dtype: torch.dtype | None) -> None:
    check(attention_case(LENGTHS, cache_dtype=cache_dtype, device=DEVICE), features(4)[feature], [3, 0, 2])


@pytest.mark.parametrize("head_dim", HEAD_PARTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_head_dimensions(head_dim: int, dtype: torch.dtype) -> None:
    case = attention_case([(60, 20)], heads=2, kv_heads=1, head_dim=head_dim, dtype=dtype, device=DEVICE)
    check(case, AttentionOptions(scale=head_dim**-0.5), [1])


@pytest.mark.parametrize("block_size", [16, 48, 64])
@pytest.mark.parametrize("window", [None, 50])
def test_block_sizes_and_rows_that_are_apart(block_size: int, window: int | None) -> None:
    case = attention_case([(block_size - 1, 1), (20, 3 * BLOCK_M + 2)], block_size=block_size, device=DEVICE)
    check(case, AttentionOptions(scale=0.3, window=window), [0, 1, 2, 3], step=3)


def test_a_head_dimension_without_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="24 dimensions"):
        check(attention_case([(3, 1)], head_dim=24, device=DEVICE), PLAIN, [0])
