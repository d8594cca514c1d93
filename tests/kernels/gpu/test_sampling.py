"""Drawing on the GPU against the reference: the very same token of every row.

The noise has the same bits on both sides, and top-k compares logits, which are given. Weights and their sums are
rounded in another order, by an ulp or two. That decides only where a weight lies that close to min-p, the mass above a
token that close to top-p, or the second of a race that close to the first: about once in a million rows of random
logits. No case here is made to lie on such an edge.
"""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import reference_sampling as reference
from kernels.backend import SamplingBatch
from kernels.gpu import sampling
from kernels.gpu.launch import JitLauncher, device_target

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAUNCH = JitLauncher(device_target(DEVICE))
NAN, INF = float("nan"), float("inf")


def examples(number: int) -> settings:
    """So many of them on a GPU, and half in the interpreter, which takes up to a second for each."""
    return settings(max_examples=number if DEVICE.type == "cuda" else number // 2, deadline=None, derandomize=True)


Row = tuple[float, int, float, float, int, int]
"""A `SamplingBatch`'s fields in order: temperature, top_k, top_p, min_p, seed, counter."""


def batch_of(rows: Sequence[Row]) -> SamplingBatch:
    kinds = (torch.float32, torch.int64, torch.float32, torch.float32, torch.int64, torch.int64)
    names = [field.name for field in fields(SamplingBatch)]
    columns = zip(names, zip(*rows, strict=True), kinds, strict=True)
    return SamplingBatch(**{name: torch.tensor(column, dtype=kind) for name, column, kind in columns})


def draw(logits: Tensor, batch: SamplingBatch) -> Tensor:
    on_device = batch.map(lambda column: column.to(DEVICE))
    # Numpy, which interprets the kernels, would warn of differences that are infinite: so they should be.
    with np.errstate(over="ignore"):
        return sampling.sample(LAUNCH, logits.to(DEVICE), on_device).cpu()


def draw_in_slices(size: int, logits: Tensor, batch: SamplingBatch) -> Tensor:
    """Of so many logits, so that a row has many slices without being long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "SLICE", size)
        return draw(logits, batch)


def draw_tuned(tuning: sampling.Tuning, logits: Tensor, batch: SamplingBatch) -> Tensor:
    """With other sizes, so that each way of settling a row is taken by rows that are short."""
    with np.errstate(over="ignore"):
        on_device = batch.map(lambda column: column.to(DEVICE))
        return sampling.sample(LAUNCH, logits.to(DEVICE), on_device, tuning).cpu()


def random_logits(kind: str, rows: int, vocab: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, vocab, generator=generator)
    banned = torch.rand(rows, vocab, generator=generator) < 0.9
    match kind:
        case "flat":
            return normal * 0.1
        case "peaked":
            return normal * 20
        case "ties":
            return (normal * 2).round() * 0.7
        case "bfloat16":
            return (normal * 3).bfloat16().float()
        case "equal":
            return torch.full_like(normal, 2.5)
        case "two levels":
            return torch.where(normal > 0.5, 0.0, -1.75)
        case "banned":
            return (normal * 3).masked_fill(banned, -INF)
    return normal * 3


logits_of = st.sampled_from(["usual", "flat", "peaked", "ties", "bfloat16", "equal", "two levels", "banned"])
row = st.tuples(
    st.sampled_from([0.0, 0.3, 1.0, 1.0, 2.5]),
    st.sampled_from([0, 0, 0, 1, 2, 7, 40, 1000, 20_000]),
    st.sampled_from([1.0, 1.0, 0.0, 0.2, 0.6, 0.95, 0.999]),
    st.sampled_from([0.0, 0.0, 0.013, 0.31, 1.0]),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**20),
)


@examples(30)
@given(
    kind=logits_of, rows=st.lists(row, min_size=1, max_size=4), vocab=st.integers(1, 400), seed=st.integers(0, 2**32)
)
def test_as_the_reference(kind: str, rows: list[Row], vocab: int, seed: int) -> None:
    logits, batch = random_logits(kind, len(rows), vocab, seed), batch_of(rows)
    assert torch.equal(draw_in_slices(64, logits, batch), reference.sample(logits, batch))


@examples(40)
@given(
    kind=logits_of,
    rows=st.lists(row, min_size=1, max_size=3),
    vocab=st.sampled_from([1, 2047, 2048, 2049, 4096, 4999, 8200, 9001]),
    seed=st.integers(0, 2**32),
)
def test_as_the_reference_in_slices_as_they_are_served(kind: str, rows: list[Row], vocab: int, seed: int) -> None:
    logits, batch = random_logits(kind, len(rows), vocab, seed), batch_of(rows)
    assert torch.equal(draw(logits, batch), reference.sample(logits, batch))


tunings = st.builds(
    sampling.Tuning,
    slice=st.sampled_from([16, 64]),
    strip=st.sampled_from([2, 8]),
    slices_a_program=st.sampled_from([1, 2, 4]),
    pivots=st.sampled_from([1, 2, 4]),
    few=st.sampled_from([2, 8, 64]),
    candidates=st.sampled_from([4, 16, 64]),
)


@examples(15)
@given(
    tuning=tunings,
    kind=logits_of,
    rows=st.lists(row.filter(lambda row: row[0] > 0), min_size=1, max_size=2),
    vocab=st.integers(1, 200),
    seed=st.integers(0, 2**32),
)
def test_no_size_changes_a_token(tuning: sampling.Tuning, kind: str, rows: list[Row], vocab: int, seed: int) -> None:
    logits, batch = random_logits(kind, len(rows), vocab, seed), batch_of(rows)
    assert torch.equal(draw_tuned(tuning, logits, batch), reference.sample(logits, batch))


NARROW = sampling.Tuning(slice=32, strip=4, slices_a_program=2, pivots=2, few=8, candidates=16)


@pytest.mark.parametrize("kind", ["flat", "peaked", "ties", "equal", "two levels"])
@pytest.mark.parametrize(
    "filters",
    [
        (5, 1.0, 0.0),
        (5, 0.7, 0.02),
        (8, 0.9, 0.0),
        (60, 1.0, 0.0),
        (60, 0.5, 0.0),
        (0, 0.9, 0.0),
        (0, 0.3, 0.0),
        (0, 1.0, 0.6),
        (0, 1.0, 0.05),
        (0, 0.8, 0.3),
        (999, 0.8, 0.0),
    ],
    ids=str,
)
def test_each_way_of_settling(kind: str, filters: tuple[int, float, float]) -> None:
    """Few tokens in registers, many weighed by several programs, and what is left over for one."""
    vocab = 150
    logits = random_logits(kind, 1, vocab, seed=6).expand(2, -1)
    batch = batch_of([(1.3, *filters, 11, counter) for counter in range(2)])
    assert torch.equal(draw_tuned(NARROW, logits, batch), reference.sample(logits, batch))


def test_more_ties_than_candidates() -> None:
    """As many of equal logits are kept as are needed, however many they are."""
    logits = torch.zeros(1, 120).index_fill(1, torch.arange(3, 90), 1.5)
    rows = [(1.0, k, p, 0.0, 7, k) for k in (0, 1, 5, 100) for p in (1.0, 0.6)]
    batch, each = batch_of(rows), logits.expand(len(rows), -1)
    assert torch.equal(draw_tuned(NARROW, each, batch), reference.sample(each, batch))


def test_many_rows_of_an_odd_vocabulary_as_each_alone() -> None:
    choices = [(0, 1.0, 0.0), (3, 1.0, 0.0), (40, 0.8, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.2), (0, 0.6, 0.01)]
    rows = [(1.0, *choices[i % 6], 5, i) for i in range(24)]
    logits, batch = random_logits("usual", 24, 131, seed=8), batch_of(rows)
    together = draw_tuned(NARROW, logits, batch)
    assert torch.equal(together, reference.sample(logits, batch))
    for i in range(0, 24, 7):
        alone = torch.tensor([i])
        assert torch.equal(draw_tuned(NARROW, logits[alone], reference.select_rows(batch, alone)), together[alone])


@pytest.mark.parametrize("kind", ["flat", "peaked", "bfloat16"])
def test_a_served_vocabulary(kind: str) -> None:
    """Of every filter, in slices and strips as they are served."""
    rows = [(1.0, k, p, m, 3, i) for i, (k, p, m) in enumerate([(50, 0.9, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05)])]
    logits, batch = random_logits(kind, len(rows), 50_257, seed=4), batch_of(rows)
    assert torch.equal(draw(logits, batch), reference.sample(logits, batch))


@pytest.mark.parametrize("kind", ["flat", "ties", "two levels", "banned"])
def test_the_kth_largest_is_found_wherever_it_lies(kind: str) -> None:
    """Every k of a row, with a top-p of what it leaves that only the search for the k-th largest can settle."""
    vocab = 40
    batch = batch_of([(2.0, k, 0.9, 0.0, k, 0) for k in (1, 2, 3, 4, 5, 9, 14, 20, 27, 35, 39, 40)])
    logits = random_logits(kind, 1, vocab, seed=3).expand(len(batch.seed), -1)
    assert torch.equal(draw_in_slices(16, logits, batch), reference.sample(logits, batch))


def test_logits_of_every_magnitude() -> None:
    """From the least to the greatest number, of either sign: the search goes by their bits."""
    numbers = torch.tensor([3e38, 1e30, 1e10, 5.0, 1.0, 1e-10, 1e-38, 1e-45, 0.0])
    logits = torch.cat([numbers, -numbers, torch.tensor([-INF])])[torch.randperm(19, generator=torch.manual_seed(1))]
    rows = [(t, k, p, 0.0, k, 0) for t in (1e-45, 1e-30, 1.0, 1e38) for k in (0, 3, 9, 10, 18) for p in (1.0, 0.7)]
    batch, each = batch_of(rows), logits.expand(len(rows), -1)
    assert torch.equal(draw_in_slices(16, each, batch), reference.sample(each, batch))


def test_plus_and_minus_zero_tie() -> None:
    logits = torch.tensor([-0.0, 0.0, -1.0, -0.0]).expand(20, -1)
    for top_k, top_p, kept in ((1, 1.0, 1), (3, 0.5, 2), (0, 0.2, 1), (0, 0.5, 2), (3, 1.0, 3)):
        batch = batch_of([(1.0, top_k, top_p, 0.0, 5, counter) for counter in range(20)])
        drawn = draw(logits, batch)
        assert torch.equal(drawn, reference.sample(logits, batch))
        assert drawn.unique().tolist() == [0, 1, 3][:kept]


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    logits = torch.full((3, 200), -1.0)
    logits[0, [63, 64, 199]] = 2.0
    logits[1, [150, 151]] = 0.0
    batch = batch_of([(0.0, 1, 0.5, 1.0, 0, 0), (0.0, 0, 1.0, 0.0, 1, 1), (0.0, 5, 1.0, 0.0, 2, 2)])
    assert draw_in_slices(64, logits, batch).tolist() == [63, 150, 0]


@pytest.mark.parametrize("size", [2, 2048])
def test_a_row_without_numbers_draws_no_token_and_leaves_the_others_alone(size: int) -> None:
    invalid = [[1.0, NAN, 0.0], [NAN] * 3, [-INF] * 3, [0.0, INF, 0.0], [-INF, -INF, NAN], [-INF, 3.0, INF]]
    logits = torch.tensor([*invalid, [-INF, -INF, 2.0]])
    for filters in ((0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (1.0, 2, 0.9, 0.1), (0.5, 0, 0.5, 0.0), (1.0, 0, 1.0, 1.0)):
        batch = batch_of([(*filters, 5, counter) for counter in range(len(logits))])
        assert draw_in_slices(size, logits, batch).tolist() == [-1] * len(invalid) + [2]


@examples(8)
@given(rows=st.lists(row, min_size=2, max_size=4), seed=st.integers(0, 2**32), data=st.data())
def test_a_row_draws_the_same_token_in_any_batch(rows: list[Row], seed: int, data: st.DataObject) -> None:
    batch, logits = batch_of(rows), random_logits("usual", len(rows), 130, seed)
    together = draw_in_slices(64, logits, batch)
    order = torch.tensor(data.draw(st.permutations(range(len(rows)))))
    some = order[: data.draw(st.integers(1, len(rows)))]
    assert torch.equal(draw_in_slices(64, logits[some], reference.select_rows(batch, some)), together[some])


def test_a_draw_follows_from_seed_and_counter_alone() -> None:
    rows: list[Row] = [(1.0, 0, 1.0, 0.0, seed, counter) for seed in (0, 7, 2**63 - 1) for counter in range(20)]
    batch, logits = batch_of(rows), random_logits("usual", 1, 300, seed=1).expand(60, -1)
    drawn = draw(logits, batch)
    assert torch.equal(drawn, draw(logits, batch))
    assert all(len(set(part.tolist())) > 5 for part in drawn.split(20))
    assert len({tuple(part.tolist()) for part in drawn.split(20)}) == 3


@pytest.mark.parametrize("layout", ["padded rows", "every other row", "every other column", "transposed", "one row"])
def test_logits_that_are_part_of_something_larger(layout: str) -> None:
    """What lies beside them is NaN, and neither it nor the logits are written."""
    wanted = random_logits("usual", 4, 150, seed=2)
    storage = torch.full((8, 320), NAN)
    views = {
        "padded rows": storage[2:6, 10:160],
        "every other row": storage[::2, :150],
        "every other column": storage[:4, 1:301:2],
        "transposed": storage.flatten()[:600].view(150, 4).T,
        "one row": storage[:1, 5:155].expand(4, -1),
    }
    logits = views[layout]
    logits[: 1 if layout == "one row" else 4] = wanted[: 1 if layout == "one row" else 4]
    before = storage.clone()
    batch = batch_of(
        [(1.0, 0, 1.0, 0.0, 1, 0), (0.0, 0, 1.0, 0.0, 2, 0), (0.7, 9, 0.8, 0.0, 3, 0), (1, 0, 0.9, 0.1, 4, 0)]
    )
    assert torch.equal(draw_in_slices(64, logits, batch), reference.sample(logits.contiguous(), batch))
    assert torch.equal(storage.nan_to_num(9e9), before.nan_to_num(9e9))


def test_an_empty_batch_draws_nothing() -> None:
    batch = batch_of([(1.0, 0, 1.0, 0.0, 0, 0)]).map(lambda column: column[:0])
    drawn = draw(torch.zeros(0, 50), batch)
    assert drawn.shape == (0,)
    assert drawn.dtype == torch.int64


@triton.jit
def _noise(seed, counter, tokens, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    key = sampling.stream_key(tl.load(seed), tl.load(counter))
    tl.store(out + at, sampling.uniforms(key, tl.load(tokens + at)))


@examples(20)
@given(seed=st.integers(0, 2**63 - 1), counter=st.integers(0, 2**40), first=st.integers(0, 2**18))
def test_the_noise_has_the_references_bits(seed: int, counter: int, first: int) -> None:
    tokens = torch.arange(first, first + 256, dtype=torch.int32)
    batch = batch_of([(1.0, 0, 1.0, 0.0, seed, counter)])
    out = torch.full((256,), NAN, device=DEVICE)
    _noise[(1,)](batch.seed.to(DEVICE), batch.counter.to(DEVICE), tokens.to(DEVICE), out, SIZE=256)
    assert torch.equal(out.cpu(), reference.uniforms(reference.stream_keys(batch), tokens)[0])


@triton.jit
def _exponentials(u, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, sampling.exponentials(tl.load(u + at)))


def test_exponentials_are_exact_where_they_are_small() -> None:
    """Small ones win races, and u has 32 bits where 1 - u has 24."""
    ends = torch.tensor([2.0**-33, 3 * 2.0**-33, 2.0**-25, 1e-7, 1 - 2.0**-24, 0.5])
    u = torch.cat([ends, torch.logspace(-9.5, 0, 250, dtype=torch.float64).float().clamp(max=1 - 2.0**-24)])
    out = torch.full_like(u, NAN, device=DEVICE)
    _exponentials[(1,)](u.to(DEVICE), out, SIZE=256)
    torch.testing.assert_close(out.cpu().double(), -torch.log1p(-u.double()), rtol=5e-7, atol=0)
