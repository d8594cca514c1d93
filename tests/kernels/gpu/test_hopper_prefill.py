"""Hopper's own kernel for prompts, played on a CPU, against the reference backend."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.backend import AttentionOptions
from kernels.gpu.attention import attend
from kernels.gpu.hopper_prefill import fits
from kernels.gpu.launch import TARGETS
from kernels.gpu.prefill import PrefillWarps
from kernels.reference import attend as reference
from tests.kernels.gpu.cases import (
    FP8,
    PADDING,
    PADDING_BEHIND_PROMPTS,
    AttentionCase,
    Lengths,
    attention_case,
    part_of,
)
from tests.kernels.gpu.hopper import HopperLauncher

PLAIN = AttentionOptions(scale=0.1)
TURNS = PrefillWarps()
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter runs the portable kernels")
RAGGED: Lengths = [(0, 5), (130, 9), (97, 70), (0, 150), (500, 200), *PADDING_BEHIND_PROMPTS]


def make(lengths: Lengths, dtype: torch.dtype = torch.bfloat16, block_size: int = 64, heads: int = 8) -> AttentionCase:
    return attention_case(lengths, heads=heads, kv_heads=2, head_dim=128, block_size=block_size, dtype=dtype)


def run(case: AttentionCase, seed: int = 0, warps: PrefillWarps = TURNS, options: AttentionOptions = PLAIN) -> Tensor:
    # The interpreter, which runs the portable kernels, warns of what padding divides by zero.
    with np.errstate(all="ignore"):
        return attend(HopperLauncher(seed), case.q, case.cache, case.layout, options, prefill=warps)


def check(case: AttentionCase, got: Tensor, options: AttentionOptions = PLAIN) -> None:
    expected = reference(case.q.float(), case.cache, case.layout, options)
    torch.testing.assert_close(got.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("warps", [TURNS, PrefillWarps(3), PrefillWarps(turns=False)], ids=str)
def test_in_whatever_order_warps_copies_and_products_run(seed: int, warps: PrefillWarps) -> None:
    case = make([(0, 5), (700, 90)])
    check(case, run(case, seed, warps))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block_size", [8, 16, 64, 128, 256])
def test_blocks_and_prompts_of_many_sizes(block_size: int, dtype: torch.dtype) -> None:
    case = make(RAGGED, dtype, block_size)
    check(case, run(case))


@interpreted
def test_beside_decoding_sequences() -> None:
    # In float16, since Triton's interpreter, which decodes, has no bfloat16 products.
    case = make([PADDING, (40, 1), *RAGGED], torch.float16)
    check(case, run(case))


@pytest.mark.parametrize("heads", [2, 6, 16, 2 * 71])
def test_groups_of_every_size(heads: int) -> None:
    case = make([(3, 70), (200, 90)], heads=heads)
    check(case, run(case))


def test_no_bit_of_a_row_depends_on_other_rows() -> None:
    case = make(RAGGED)
    together = run(case)
    for sequence, (cached, new) in enumerate(RAGGED):
        if cached >= 0 and new > 0:
            begin = int(case.layout.query_starts[sequence])
            assert torch.equal(run(part_of(case, sequence, 0, new), seed=1), together[begin : begin + new])


@interpreted
@pytest.mark.parametrize(
    "options",
    [
        AttentionOptions(scale=0.1, window=100),
        AttentionOptions(scale=0.1, softcap=2.0),
        AttentionOptions(scale=0.1, alibi_slopes=torch.ones(8)),
        AttentionOptions(scale=0.1, sinks=torch.ones(8)),
    ],
    ids=["window", "softcap", "alibi", "sinks"],
)
def test_what_does_not_fit_goes_to_the_portable_kernel(options: AttentionOptions) -> None:
    case = make([(3, 70)], torch.float16)
    assert fits(TARGETS["sm_90"], case.q, case.cache, PLAIN)
    assert not fits(TARGETS["sm_90"], case.q, case.cache, options)
    check(case, run(case, options=options), options)


def test_other_chips_dtypes_heads_and_blocks_do_not_fit() -> None:
    case = make([(3, 70)])
    assert not any(fits(TARGETS[chip], case.q, case.cache, PLAIN) for chip in ("sm_80", "sm_100", "gfx942"))
    for other in (
        attention_case([(3, 70)], heads=8, head_dim=128, dtype=torch.float32),
        attention_case([(3, 70)], heads=8, head_dim=128, dtype=torch.bfloat16, cache_dtype=FP8),
        attention_case([(3, 70)], heads=8, head_dim=64, dtype=torch.bfloat16),
        attention_case([(3, 70)], heads=8, head_dim=128, dtype=torch.bfloat16, block_size=48),
        attention_case([(3, 70)], heads=8, head_dim=128, dtype=torch.bfloat16, block_size=4),
    ):
        assert not fits(TARGETS["sm_90"], other.q, other.cache, PLAIN)
