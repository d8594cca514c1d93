"""Paged attention against the reference backend, over caches that are poisoned wherever no sequence owns them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import AttentionOptions
from kernels.gpu.arrival import arrivals
from kernels.gpu.attention import attend
from kernels.gpu.decode import DECODING, SPLIT, DecodeTiles, Decoding, Splitting, split_count, splits_together
from kernels.gpu.launch import JitLauncher, device_target
from kernels.gpu.tiles import HEAD_PARTS
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

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAUNCH = JitLauncher(device_target(DEVICE))
PLAIN = AttentionOptions(scale=0.3)
RAGGED: Lengths = [(0, 1), (37, 1), (200, 1), (0, 5), (130, 9), (3, 70), (0, 150)]


def run(
    case: AttentionCase, options: AttentionOptions, decoding: Decoding = DECODING, launch: JitLauncher = LAUNCH
) -> Tensor:
    # The interpreter computes in NumPy, which warns of the infinities that a poisoned FP8 code decodes to.
    with np.errstate(all="ignore"):
        return attend(launch, case.q, case.cache, case.layout, options, decoding)


def check(case: AttentionCase, options: AttentionOptions = PLAIN, decoding: Decoding = DECODING) -> None:
    got = run(case, options, decoding)
    wide = replace(case, q=case.q.float())
    expected = reference(wide.q, case.cache, case.layout, options)
    tolerance = 1e-5 if case.q.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got.float(), expected, rtol=tolerance, atol=tolerance)


def features(heads: int) -> dict[str, AttentionOptions]:
    slopes, sinks = torch.rand(heads, device=DEVICE), torch.randn(heads, device=DEVICE)
    return {
        "plain": PLAIN,
        "window-1": AttentionOptions(scale=0.3, window=1),
        "window-40": AttentionOptions(scale=0.3, window=40),
        "softcap": AttentionOptions(scale=0.3, softcap=2.0),
        "alibi": AttentionOptions(scale=0.3, alibi_slopes=slopes),
        "sinks": AttentionOptions(scale=0.3, sinks=sinks),
        "all": AttentionOptions(scale=0.3, window=100, softcap=2.0, alibi_slopes=slopes, sinks=sinks),
    }


@pytest.mark.parametrize("feature", features(4))
@pytest.mark.parametrize("cache_dtype", [None, FP8], ids=["same", "fp8"])
def test_features(feature: str, cache_dtype: torch.dtype | None) -> None:
    lengths = [PADDING, *RAGGED, *PADDING_BEHIND_PROMPTS]
    check(attention_case(lengths, cache_dtype=cache_dtype, device=DEVICE), features(4)[feature])


@pytest.mark.parametrize("head_dim", HEAD_PARTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_head_dimensions(head_dim: int, dtype: torch.dtype) -> None:
    lengths = [(60, 1), (130, 1), (20, 40)]
    case = attention_case(lengths, heads=2, kv_heads=1, head_dim=head_dim, dtype=dtype, device=DEVICE)
    check(case, AttentionOptions(scale=head_dim**-0.5))


@pytest.mark.parametrize("block_size", [16, 48, 64, 80, 128])
@pytest.mark.parametrize("window", [None, 90])
def test_block_sizes(block_size: int, window: int | None) -> None:
    lengths = [(block_size - 1, 1), (block_size, 1), (300, 1), (2 * block_size, 3), (100, 100)]
    case = attention_case(lengths, heads=2, kv_heads=1, block_size=block_size, device=DEVICE)
    check(case, AttentionOptions(scale=0.3, window=window))


@pytest.mark.parametrize("heads", [(1, 1), (3, 1), (6, 2), (8, 1), (32, 1)])
def test_heads_that_share_a_kv_head(heads: tuple[int, int]) -> None:
    check(attention_case([(50, 1), (0, 1), (9, 60)], heads=heads[0], kv_heads=heads[1], device=DEVICE))


@pytest.mark.parametrize("context", [SPLIT - 1, SPLIT, SPLIT + 1, 3 * SPLIT + 77])
@pytest.mark.parametrize("feature", ["plain", "sinks", "all"])
def test_decoding_over_splits(context: int, feature: str) -> None:
    lengths = [(5, 1), (context - 1, 1), PADDING, (SPLIT * 2, 1)]
    check(attention_case(lengths, device=DEVICE), features(4)[feature])


@triton.jit
def _split_counts(
    contexts, window, out, SIZE: tl.constexpr, BITS: tl.constexpr, GROWTHS: tl.constexpr, PARTS: tl.constexpr
):
    at = tl.arange(0, SIZE)
    tl.store(out + at, split_count(tl.load(contexts + at), window, BITS, GROWTHS, PARTS))


@pytest.mark.parametrize("window", [None, 90, 1500, 9000])
def test_splits_grow_with_a_context_and_have_room(window: int | None) -> None:
    """A short context has small splits and a long one large ones; the results of all of them have their place."""
    splitting = Splitting()
    contexts = torch.cat([torch.arange(0, 3072), torch.arange(4000, 40_864, 36)]).int()
    counts = torch.zeros_like(contexts, device=DEVICE)
    _split_counts[(1,)](contexts.to(DEVICE), window, counts, SIZE=4096, BITS=7, GROWTHS=3, PARTS=16)
    room = torch.tensor([splitting.most(context, window) for context in contexts.tolist()])
    assert (counts.cpu() <= room).all()
    assert (room == room.cummax(0).values).all()  # A graph for long contexts has room for all shorter ones.
    assert (room[contexts <= 2048] <= 17).all()
    if window is None:
        assert [int(counts[contexts == context]) for context in (1, 128, 129, 1024, 2048, 2049)] == [1, 1, 2, 8, 16, 9]
        assert int(counts[contexts == 40_000 - 36 * 400]) == -(-(40_000 - 36 * 400) // 1024)


def test_large_splits_beside_small_ones() -> None:
    """Sequences whose splits have each size, in one batch."""
    lengths = [(100, 1), (2049, 1), (4100, 1), (8200, 1)]
    check(attention_case(lengths, heads=2, kv_heads=1, head_dim=16, device=DEVICE))
    check(attention_case(lengths, heads=2, kv_heads=1, head_dim=16, device=DEVICE), AttentionOptions(0.3, window=2100))


@pytest.mark.parametrize(("heads", "feature"), [((4, 2), "plain"), ((3, 1), "all")], ids=str)
def test_who_combines_splits_changes_no_bit(heads: tuple[int, int], feature: str) -> None:
    """Whichever program is the last to finish, and whether one of them combines the splits or a second kernel does."""
    lengths = [PADDING, (5, 1), *((SPLIT * splits + 9, 1) for splits in (1, 2, 7))]
    case = attention_case(lengths, heads=heads[0], kv_heads=heads[1], device=DEVICE)
    options = features(heads[0])[feature]
    apart = run(case, options, Decoding(folded=False))
    assert bool(apart.isfinite().all())
    for multiprocessors in (1, 132):
        launch = JitLauncher(replace(LAUNCH.target, multiprocessors=multiprocessors))
        assert torch.equal(run(case, options, Decoding(folded=True), launch), apart)
        assert not arrivals(32 * heads[1], DEVICE).any()


def test_splits_that_are_loaded_together_make_a_tile() -> None:
    """The compiler has no tile of another width; the interpreter does."""
    counts = [splits_together(1 << bits, head_dim) for bits in range(7) for head_dim in HEAD_PARTS]
    assert all(count >= 1 and count & (count - 1) == 0 for count in counts)


def test_a_program_arrives_for_more_items_than_it_has_threads() -> None:
    lengths = [(2000, 1)] * 3
    case = attention_case(lengths, heads=2, kv_heads=2, device=DEVICE)
    launch = JitLauncher(replace(LAUNCH.target, multiprocessors=1))
    tiles = DecodeTiles(64, 1, 3, 2)
    assert 3 * 16 * 2 // tiles.programs > tiles.num_warps * launch.target.warp_size
    assert torch.equal(
        run(case, PLAIN, Decoding(tiles=tiles, folded=True), launch), run(case, PLAIN, Decoding(folded=False))
    )


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("head_dim", [16, 80, 128])
def test_values_of_an_fp8_cache_in_pairs_and_alone(paired: bool, head_dim: int) -> None:
    lengths = [(5, 1), (SPLIT + 40, 1), PADDING, (70, 1)]
    case = attention_case(lengths, cache_dtype=FP8, dtype=torch.float16, head_dim=head_dim, device=DEVICE)
    check(case, features(4)["all"], Decoding(paired=paired))


def test_a_window_leaves_splits_out() -> None:
    case = attention_case([(4 * SPLIT, 1), (2 * SPLIT + 30, 1)], device=DEVICE)
    check(case, AttentionOptions(scale=0.3, window=SPLIT // 2 + 3))


def test_an_fp8_cache_over_splits() -> None:
    check(attention_case([(SPLIT + 40, 1), (10, 1)], cache_dtype=FP8, dtype=torch.float16, device=DEVICE))


@pytest.mark.parametrize("feature", ["plain", "window-40", "all"])
def test_a_sequence_alone_is_bit_for_bit_what_it_is_in_a_batch(feature: str) -> None:
    case = attention_case([(SPLIT + 9, 1), (37, 1), (0, 30), (40, 60)], device=DEVICE)
    options = features(4)[feature]
    together = run(case, options)
    starts = case.layout.query_starts.tolist()
    for sequence, (begin, end) in enumerate(pairwise(starts)):
        assert torch.equal(run(part_of(case, sequence, 0, end - begin), options), together[begin:end])


@pytest.mark.parametrize("feature", ["plain", "window-40", "softcap"])
def test_a_prompt_in_chunks_is_what_it_is_whole(feature: str) -> None:
    """Bit for bit on a GPU. In the interpreter dots are NumPy's, whose sums depend on where in a tile a row stands."""
    case = attention_case([(0, 140)], device=DEVICE)
    options = features(4)[feature]
    whole = run(case, options)
    for first, last in ((0, 33), (33, 35), (35, 140)):
        tolerance = 0.0 if DEVICE.type == "cuda" else 1e-6
        part = run(part_of(case, 0, first, last), options)
        torch.testing.assert_close(part, whole[first:last], rtol=tolerance, atol=tolerance)


def test_blocks_beyond_what_32_bits_count() -> None:
    """The last blocks of a cache with 2^31 elements, of which only those are ever touched."""
    small = attention_case([(20, 1), (10, 20)], heads=2, kv_heads=1, head_dim=64, dtype=torch.float16, device=DEVICE)
    used = small.cache.keys.shape[0]
    blocks = 2**31 // (16 * 64) + used
    far = [torch.empty(blocks, 16, 1, 64, dtype=torch.float16, device=DEVICE) for _ in range(2)]
    for pool, near in zip(far, small.cache[:2], strict=True):
        pool[-used:].copy_(near)
    layout = replace(small.layout, block_table=small.layout.block_table + (blocks - used))
    moved = replace(small, cache=small.cache._replace(keys=far[0], values=far[1]), layout=layout)
    assert torch.equal(run(moved, PLAIN), run(small, PLAIN))


def test_a_head_dimension_without_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="24 dimensions"):
        run(attention_case([(3, 1)], head_dim=24, device=DEVICE), PLAIN)
