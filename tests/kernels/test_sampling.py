"""A draw has the distribution the filters define, and is a function of the row alone."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from kernels import reference_sampling
from kernels.backend import SamplingBatch
from kernels.reference_sampling import (
    hash_32,
    hash_64,
    race,
    sample,
    sampled_weights,
    select_rows,
    softmax_weights,
    stream_keys,
    uniforms,
)

Sampler = Callable[[Tensor, SamplingBatch], Tensor]
Probabilities = npt.NDArray[np.float64]

DRAWS = 200_000
LEVEL = 1e-4
"""A right sampler fails a check this rarely over seeds; the seeds are fixed."""

deterministic = settings(derandomize=True, deadline=None)


@dataclass(frozen=True)
class Filters:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def batch_of(filters: Filters, seed: Tensor | int, counter: Tensor | int) -> SamplingBatch:
    seeds, counters = torch.broadcast_tensors(
        torch.as_tensor(seed, dtype=torch.int64), torch.as_tensor(counter, dtype=torch.int64)
    )
    seeds, counters = seeds.reshape(-1).clone(), counters.reshape(-1).clone()
    return SamplingBatch(
        temperature=torch.full(seeds.shape, filters.temperature),
        top_k=torch.full(seeds.shape, filters.top_k),
        top_p=torch.full(seeds.shape, filters.top_p),
        min_p=torch.full(seeds.shape, filters.min_p),
        seed=seeds,
        counter=counters,
    )


def concatenate(batches: list[SamplingBatch]) -> SamplingBatch:
    return SamplingBatch(**{f.name: torch.cat([getattr(b, f.name) for b in batches]) for f in fields(SamplingBatch)})


def normalised(weights: Probabilities) -> Probabilities:
    return weights / weights.sum()


def textbook(logits: Tensor, filters: Filters) -> Probabilities:
    """The filtered distribution of one row, by the definitions, in float64."""
    scaled = logits.double().numpy() / filters.temperature
    p = normalised(np.exp(scaled - scaled.max()))
    # The likeliest first, and of equal ones the lowest id.
    order = np.argsort(-p, kind="stable")
    if filters.top_k:
        p[order[filters.top_k :]] = 0
        p = normalised(p)
    if filters.top_p < 1:
        crossing = np.flatnonzero(np.cumsum(p[order]) >= np.float32(filters.top_p))[0]
        p[order[crossing + 1 :]] = 0
        p = normalised(p)
    return normalised(np.where(p >= np.float32(filters.min_p) * p.max(), p, 0))


def check_frequencies(tokens: Tensor, expected: Probabilities) -> None:
    """The tokens lie in the support of the distribution, and their counts fit it by chi-square."""
    counts = np.bincount(tokens.numpy(), minlength=len(expected))
    assert counts[expected == 0].sum() == 0, "support: a token was drawn that the filters drop"
    means = expected * len(tokens)
    rare = means < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    predicted = np.append(means[~rare], means[rare].sum())
    if predicted[-1] < 1:
        observed[-2] += observed[-1]
        predicted[-2] += predicted[-1]
        observed, predicted = observed[:-1], predicted[:-1]
    if len(observed) > 1:
        assert stats.chisquare(observed, predicted).pvalue > LEVEL, "frequencies: the counts do not fit"


def check_sampler(sampler: Sampler, logits: Tensor, filters: Filters) -> None:
    """One row's logits, drawn from at many counters, follow the textbook."""
    batch = batch_of(filters, seed=20, counter=torch.arange(DRAWS))
    check_frequencies(sampler(logits.expand(DRAWS, -1), batch), textbook(logits, filters))


LOGITS = torch.randn(50, generator=torch.Generator().manual_seed(1)) * 2.5

SETTINGS = [
    Filters(),
    Filters(temperature=0.6),
    Filters(top_k=7),
    Filters(top_p=0.8),
    Filters(min_p=0.1),
    Filters(temperature=3.0, min_p=0.02),
    Filters(temperature=1.5, top_k=12, top_p=0.9),
    Filters(temperature=0.8, top_k=20, min_p=0.05),
    Filters(temperature=2.0, top_p=0.95, min_p=0.1),
    Filters(temperature=1.3, top_k=15, top_p=0.97, min_p=0.03),
]
EDGES = [Filters(top_k=1), Filters(top_k=50), Filters(top_k=500), Filters(top_p=0.0), Filters(top_p=0.9999)]


@pytest.mark.parametrize("filters", SETTINGS, ids=str)
def test_draws_follow_the_definition(filters: Filters) -> None:
    check_sampler(sample, LOGITS, filters)


def test_rows_of_one_batch_are_filtered_each_by_its_own_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    # So few candidates that some rows are complete and others need the whole row.
    monkeypatch.setattr(reference_sampling, "CANDIDATES", 8)
    each_filters = SETTINGS + EDGES
    each = DRAWS // len(each_filters) + 1
    batch = concatenate([batch_of(f, i, torch.arange(each)) for i, f in enumerate(each_filters)])
    shuffle = torch.randperm(len(batch.seed), generator=torch.Generator().manual_seed(2))
    tokens = sample(LOGITS.expand(len(shuffle), -1), select_rows(batch, shuffle))
    for i, filters in enumerate(each_filters):
        check_frequencies(tokens[batch.seed[shuffle] == i], textbook(LOGITS, filters))


def patched(name: str, fault: Callable[..., Tensor | None]) -> Sampler:
    """The sampler with one of its own parts replaced."""

    def sampler(logits: Tensor, batch: SamplingBatch) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reference_sampling, name, fault)
            return sample(logits, batch)

    sampler.__name__ = fault.__name__
    return sampler


def top_k_off_by_one(logits: Tensor, batch: SamplingBatch) -> Tensor:
    return sample(logits, replace(batch, top_k=batch.top_k + 1))


def top_p_without_the_crossing_token(logits: Tensor, batch: SamplingBatch) -> Tensor:
    ranked, ids = logits[0].softmax(-1).sort(descending=True)
    dropped = ids[ranked.cumsum(-1) > batch.top_p[0]]
    return sample(logits.index_fill(1, dropped, -torch.inf), replace(batch, top_p=torch.ones_like(batch.top_p)))


def temperature_after_the_filters(logits: Tensor, batch: SamplingBatch) -> Tensor:
    off = batch_of(Filters(float(batch.temperature[0])), batch.seed, batch.counter)
    at_one = Filters(1.0, int(batch.top_k[0]), float(batch.top_p[0]), float(batch.min_p[0]))
    dropped = torch.from_numpy(textbook(logits[0], at_one) == 0)
    return sample(logits.masked_fill(dropped, -torch.inf), off)


def noise_shared_by_neighbours(logits: Tensor, batch: SamplingBatch) -> Tensor:
    return sample(logits, replace(batch, counter=batch.counter // 64))


def noise_shared_by_all(logits: Tensor, batch: SamplingBatch) -> Tensor:
    return sample(logits, replace(batch, counter=torch.zeros_like(batch.counter)))


def uniforms_of_16_bits(keys: Tensor, tokens: Tensor) -> Tensor:
    return (uniforms(keys, tokens) * 2**16).floor() / 2**16


def uniforms_of_16_bits_above_0(keys: Tensor, tokens: Tensor) -> Tensor:
    return ((uniforms(keys, tokens) * 2**16).floor() + 0.5) / 2**16


def exponentials_that_round_to_0(u: Tensor) -> Tensor:
    return (1 - u).log().abs()


def hash_without_mixing(x: Tensor) -> None:
    x *= 0x21F0AAAD


def hash_of_a_biased_bit(x: Tensor) -> None:
    hash_32(x)
    x &= ~(1 << 28)


def race_of_square_roots(weights: Tensor, keys: Tensor, tokens: Tensor) -> Tensor:
    return race(weights.sqrt(), keys, tokens)


FAULTS: list[tuple[Sampler, Filters]] = [
    (top_k_off_by_one, Filters(top_k=7)),
    (top_p_without_the_crossing_token, Filters(top_p=0.8)),
    (temperature_after_the_filters, Filters(temperature=2.0, top_p=0.9)),
    (temperature_after_the_filters, Filters(temperature=0.5, min_p=0.1)),
    (noise_shared_by_neighbours, Filters()),
    (noise_shared_by_all, Filters()),
    (patched("uniforms", uniforms_of_16_bits), Filters(temperature=0.5)),
    (patched("uniforms", uniforms_of_16_bits), Filters(top_k=7)),
    (patched("hash_32", hash_of_a_biased_bit), Filters()),
    (patched("race", race_of_square_roots), Filters()),
]


@pytest.mark.parametrize(("sampler", "filters"), FAULTS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_faulty_sampler_is_found_out(sampler: Sampler, filters: Filters) -> None:
    with pytest.raises(AssertionError, match=r"support|frequencies"):
        check_sampler(sampler, LOGITS, filters)


def check_tails(sampler: Sampler) -> None:
    """Among 49152 tokens, those of a thick and of a thin tail are drawn as often as their masses say."""
    vocab, rows, chunk = 49_152, 2_048, 64
    masses = np.array([1 - 0.1 - 1e-5, 0.1, 1e-5])
    # Each token's part: one is likely, two in three make the thick tail, the rest are all but impossible.
    part = torch.where(torch.arange(vocab) % 3 > 0, 1, 2).index_fill(0, torch.tensor([30_000]), 0)
    logits = torch.from_numpy(np.log(masses / np.bincount(part.numpy()))).float()[part]
    tokens = torch.cat(
        [
            sampler(logits.expand(chunk, -1), batch_of(Filters(), 3, torch.arange(start, start + chunk)))
            for start in range(0, rows, chunk)
        ]
    )
    for count, mass in zip(torch.bincount(part[tokens], minlength=3).tolist(), masses, strict=True):
        assert stats.binomtest(count, rows, mass).pvalue > LEVEL, "frequencies: a tail's share does not fit"
    thick = tokens[part[tokens] == 1]
    spread = torch.histc(thick.float(), bins=16, min=0, max=vocab).numpy()
    assert stats.chisquare(spread).pvalue > LEVEL, "frequencies: a tail is not drawn from evenly"


def test_tails_of_a_large_vocabulary() -> None:
    check_tails(sample)


@pytest.mark.parametrize(
    "sampler",
    [
        patched("exponentials", exponentials_that_round_to_0),
        patched("uniforms", uniforms_of_16_bits),
        patched("uniforms", uniforms_of_16_bits_above_0),
    ],
    ids=lambda sampler: sampler.__name__,
)
def test_noise_too_coarse_for_the_tails_is_found_out(sampler: Sampler) -> None:
    with pytest.raises(AssertionError, match="frequencies"):
        check_tails(sampler)


COUNTERS = torch.arange(DRAWS)


def check_uniform_pairs(one: Tensor, other: Tensor) -> None:
    """Pairs of numbers spread evenly over the unit square."""
    cells = (one * 16).long() * 16 + (other * 16).long()
    assert stats.chisquare(torch.bincount(cells, minlength=256).numpy()).pvalue > LEVEL, "pairs are not even"


def check_uniforms(numbers: Tensor) -> None:
    """A sequence of numbers is uniform, down to its last bits, and each is independent of the next."""
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > LEVEL, "not uniform"
    finest = (numbers * 2**24).long() % 256
    assert stats.chisquare(torch.bincount(finest, minlength=256).numpy()).pvalue > LEVEL, "last bits are not even"
    check_uniform_pairs(numbers[:-1], numbers[1:])


ONE_ROW = batch_of(Filters(), 9, 9)
VOCABULARY = torch.arange(DRAWS, dtype=torch.int32)


@pytest.mark.parametrize(
    "batch",
    [batch_of(Filters(), 0, COUNTERS), batch_of(Filters(), COUNTERS, 0), batch_of(Filters(), 2**62, COUNTERS)],
    ids=["counters", "seeds", "counters-of-a-large-seed"],
)
def test_uniforms_along_counters_and_seeds(batch: SamplingBatch) -> None:
    first, second = uniforms(stream_keys(batch), torch.tensor([0, 1], dtype=torch.int32)).unbind(1)
    check_uniforms(first)
    check_uniform_pairs(first, second)
    check_uniform_pairs(first[:-1], second[1:])


def test_uniforms_along_the_vocabulary() -> None:
    check_uniforms(uniforms(stream_keys(ONE_ROW), VOCABULARY)[0])


def test_a_hash_that_does_not_mix_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_sampling, "hash_32", hash_without_mixing)
    with pytest.raises(AssertionError, match=r"uniform|even"):
        check_uniforms(uniforms(stream_keys(ONE_ROW), VOCABULARY)[0])


@pytest.mark.parametrize(("seed", "counter"), [(0, 1), (1, 0)], ids=["counters", "seeds"])
def test_consecutive_tokens_are_independent(seed: int, counter: int) -> None:
    batch = batch_of(Filters(), seed * COUNTERS, counter * COUNTERS)
    tokens = sample(LOGITS[:8].expand(DRAWS, -1), batch)
    pairs = torch.bincount(tokens[:-1] * 8 + tokens[1:], minlength=64).view(8, 8).numpy()
    assert stats.chi2_contingency(pairs[pairs.sum(1) > 400][:, pairs.sum(0) > 400]).pvalue > LEVEL


MASK_32, MASK_64 = 2**32 - 1, 2**64 - 1


def integer_hash(seed: int, counter: int, token: int) -> int:
    """The generator's 32 bits in Python integers."""

    def mix_64(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK_64
        x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK_64
        return x ^ x >> 31

    def mix_32(x: int) -> int:
        x = (x ^ x >> 16) * 0x21F0AAAD & MASK_32
        x = (x ^ x >> 15) * 0xD35A2D97 & MASK_32
        return x ^ x >> 15

    gamma = 0x9E3779B97F4A7C15
    key = mix_64(mix_64(seed + gamma & MASK_64) + (counter + 1) * gamma & MASK_64)
    return mix_32(mix_32(token ^ key & MASK_32) ^ key >> 32)


def test_64_bit_hash_gives_the_published_outputs_of_splitmix64() -> None:
    states = torch.tensor(1234567) + torch.arange(1, 4) * (0x9E3779B97F4A7C15 - 2**64)
    assert [x % 2**64 for x in hash_64(states).tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@deterministic
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31), st.lists(st.integers(0, 2**20), min_size=1))
def test_uniforms_are_the_integer_arithmetic(seed: int, counter: int, tokens: list[int]) -> None:
    drawn = uniforms(stream_keys(batch_of(Filters(), seed, counter)), torch.tensor(tokens, dtype=torch.int32))
    for u, token in zip(drawn[0].tolist(), tokens, strict=True):
        assert u == pytest.approx((integer_hash(seed, counter, token) + 0.5) / 2**32, rel=2**-23)
        assert 0 < u < 1


@pytest.mark.parametrize(
    ("seed", "counter", "token", "bits"),
    [
        (0, 0, 0, 0xFB50D7D5),
        (0, 0, 1, 0xC8328035),
        (0, 1, 0, 0x94D15995),
        (1, 0, 0, 0xECD9C5BA),
        (42, 17, 49_151, 0x9F2502AC),
        (2**63 - 1, 131_071, 262_143, 0xE1310036),
    ],
)
def test_pinned_uniforms(seed: int, counter: int, token: int, bits: int) -> None:
    """A seeded answer stays the same from one version, and one backend, to the next."""
    assert integer_hash(seed, counter, token) == bits
    drawn = uniforms(stream_keys(batch_of(Filters(), seed, counter)), torch.tensor([token], dtype=torch.int32))
    assert drawn.item() == (np.float32(bits) + np.float32(0.5)) * np.float32(2**-32)


def test_the_ends_of_the_hash_make_positive_finite_exponentials(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([[0, -1, -2, 2**31 - 1]], dtype=torch.int32)
    monkeypatch.setattr(reference_sampling, "hash_32", lambda x: x.copy_(ends))
    u = uniforms(torch.zeros(1, dtype=torch.int64), torch.zeros(4, dtype=torch.int32))
    assert u[0, 0] == 2.0**-33
    e = reference_sampling.exponentials(u)
    assert torch.all(e > 0)
    assert torch.all(e.isfinite())


temperatures = st.sampled_from([0.0, 0.3, 1.0, 2.5])
any_filters = st.builds(
    Filters,
    temperature=temperatures,
    top_k=st.sampled_from([0, 0, 1, 5, 40, 1000]),
    top_p=st.sampled_from([1.0, 1.0, 0.2, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.3]),
)


def random_logits(seed: int, rows: int, vocab: int) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


@deterministic
@given(
    rows=st.lists(st.tuples(any_filters, st.integers(0, 2**63 - 1), st.integers(0, 2**20)), min_size=1, max_size=8),
    logits_seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_a_row_draws_the_same_token_in_any_batch(
    rows: list[tuple[Filters, int, int]], logits_seed: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_sampling, "CANDIDATES", 16)
        batch = concatenate([batch_of(*row) for row in rows])
        logits = random_logits(logits_seed, len(rows), 100)
        together = sample(logits, batch)
        order = torch.tensor(data.draw(st.permutations(range(len(rows)))))
        some = order[: data.draw(st.integers(1, len(rows)))]
        assert torch.equal(sample(logits[some], select_rows(batch, some)), together[some])


@deterministic
@given(any_filters.filter(lambda f: f.temperature > 0), st.integers(0, 2**32), st.integers(1, 300), st.booleans())
def test_filters_and_candidates_leave_the_winner_among_what_is_kept(
    filters: Filters, logits_seed: int, candidates: int, tied: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_sampling, "CANDIDATES", candidates)
        logits = random_logits(logits_seed, 1, 300)
        logits = logits.round() if tied else logits
        counters = torch.arange(20)
        kept = torch.from_numpy(textbook(logits[0], filters) > 0)
        unfiltered = sample(
            logits.masked_fill(~kept, -torch.inf).expand(20, -1),
            batch_of(Filters(filters.temperature), logits_seed, counters),
        )
        assert torch.equal(sample(logits.expand(20, -1), batch_of(filters, logits_seed, counters)), unfiltered)


@deterministic
@given(any_filters.filter(lambda f: f.temperature > 0), st.integers(0, 2**32))
def test_textbook_is_what_transformers_filters_to(filters: Filters, logits_seed: int) -> None:
    logits = random_logits(logits_seed, 1, 100).double()
    warpers = [
        TemperatureLogitsWarper(filters.temperature),
        TopKLogitsWarper(filters.top_k or 100),
        TopPLogitsWarper(float(np.float32(filters.top_p))),
        MinPLogitsWarper(float(np.float32(filters.min_p))),
    ]
    scores = logits
    for warp in warpers:
        scores = warp(torch.zeros(1, 1, dtype=torch.int64), scores)
    np.testing.assert_allclose(textbook(logits[0], filters), scores[0].softmax(-1).numpy(), rtol=1e-9)


def test_greedy_takes_the_first_of_the_likeliest_and_makes_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(reference_sampling, "uniforms")
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [3.0, -torch.inf, 3.0, 3.0]])
    assert sample(logits, batch_of(Filters(temperature=0.0, top_k=2, top_p=0.5), 1, torch.arange(2))).tolist() == [1, 0]


@pytest.mark.parametrize(
    "filters",
    [Filters(0.0), Filters(), Filters(top_k=2), Filters(top_p=0.9), Filters(min_p=0.1), Filters(top_k=9, top_p=0.5)],
    ids=str,
)
def test_a_row_without_numbers_draws_no_token_and_leaves_the_others_alone(filters: Filters) -> None:
    nan, inf = torch.nan, torch.inf
    logits = torch.tensor(
        [[1.0, nan, 0.0], [-inf, -inf, 2.0], [nan, nan, nan], [-inf, -inf, -inf], [0.0, inf, 0.0], [-inf, nan, -inf]]
    )
    assert sample(logits, batch_of(filters, 5, torch.arange(6))).tolist() == [-1, 2, -1, -1, -1, -1]


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        (Filters(top_k=2), [0, 2]),
        (Filters(top_k=5), [0, 2, 3, 5, 4]),
        (Filters(top_p=0.6), [0, 2, 3]),
        (Filters(top_k=3, top_p=0.6), [0, 2]),
        (Filters(top_k=3, min_p=1.0), [0, 2, 3]),
        (Filters(min_p=1.0), [0, 2, 3, 5]),
        (Filters(top_p=0.0), [0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("candidates", [2, 3, 1024])
def test_of_tokens_that_tie_at_the_cut_the_lowest_ids_are_kept(
    filters: Filters, kept: list[int], candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_sampling, "CANDIDATES", candidates)
    logits = torch.tensor([2.0, -9.0, 2.0, 2.0, 0.0, 2.0])
    expected = normalised(np.exp(logits.double().numpy()) * np.isin(np.arange(6), kept))
    np.testing.assert_allclose(textbook(logits, filters), expected)
    check_frequencies(sample(logits.expand(2_000, -1), batch_of(filters, 6, torch.arange(2_000))), expected)


def test_top_p_after_top_k_is_a_share_of_what_that_keeps_of_a_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_sampling, "CANDIDATES", 4)
    # The first token has 0.29 of the mass of all, and 0.67 of that of the three that top-k keeps.
    logits = torch.tensor([4.0] + [1.0] * 10).log()
    for top_p, kept in ((0.6, 1), (0.7, 2), (0.9, 3)):
        filters = Filters(top_k=3, top_p=top_p)
        tokens = sample(logits.expand(20_000, -1), batch_of(filters, 8, torch.arange(20_000)))
        check_frequencies(tokens, textbook(logits, filters))
        assert tokens.unique().tolist() == list(range(kept))


TIED = {
    "bfloat16": (torch.randn(3000, generator=torch.Generator().manual_seed(5)) * 2).bfloat16().float(),
    "flat": torch.full((1024,), -3.5),
    "two levels": torch.where(torch.arange(1500) % 7 == 3, 1.5, -2.0),
}
"""Logits many of which are equal."""


def kept_of(logits: Tensor, filters: Filters) -> Tensor:
    """The tokens of one row that are drawn at all, int64, ascending."""
    return sampled_weights(logits[None], batch_of(filters, 0, 0))[0].nonzero().flatten()


def check_lowest_ids_of_ties(logits: Tensor, kept: Tensor) -> None:
    tied = (logits == logits[kept].min()).nonzero().flatten()
    assert torch.equal(kept[torch.isin(kept, tied)], tied[: int(torch.isin(tied, kept).sum())])


@pytest.mark.parametrize("top_p", [0.1, 0.25, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("kind", TIED)
def test_top_p_keeps_as_many_of_a_tie_as_transformers(kind: str, top_p: float) -> None:
    logits = TIED[kind]
    warped = TopPLogitsWarper(float(np.float32(top_p)))(torch.zeros(1, 1), logits[None].double())[0].isfinite()
    kept = kept_of(logits, Filters(top_p=top_p))
    assert torch.equal(logits[kept].sort().values, logits[warped].sort().values)
    check_lowest_ids_of_ties(logits, kept)


@pytest.mark.parametrize("top_k", [1, 5, 200, 700, 1023, 1024])
@pytest.mark.parametrize("kind", TIED)
def test_top_k_keeps_k_tokens_of_those_that_transformers_keeps(kind: str, top_k: int) -> None:
    """Transformers keeps all that tie with the last one, and llama.cpp as many as are kept here."""
    logits = TIED[kind]
    warped = TopKLogitsWarper(top_k)(torch.zeros(1, 1), logits[None])[0].isfinite()
    kept = kept_of(logits, Filters(top_k=top_k))
    assert len(kept) == top_k
    assert torch.equal(logits[kept].sort(descending=True).values, logits[warped].sort(descending=True).values[:top_k])
    check_lowest_ids_of_ties(logits, kept)


@pytest.mark.parametrize("kind", TIED)
def test_filters_one_after_the_other_keep_of_a_tie_what_the_definition_keeps(kind: str) -> None:
    for temperature, top_k, top_p, min_p in product((0.7, 2.0), (0, 40, 900), (1.0, 0.4, 0.85), (0.0, 0.02)):
        filters = Filters(temperature, top_k, top_p, min_p)
        expected = textbook(TIED[kind], filters).nonzero()[0]
        assert kept_of(TIED[kind], filters).tolist() == expected.tolist(), filters


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-45])
@pytest.mark.parametrize("filters", [Filters(), Filters(top_k=3), Filters(top_p=0.5), Filters(min_p=0.5)], ids=str)
def test_a_very_low_temperature_takes_the_likeliest_token(temperature: float, filters: Filters) -> None:
    logits = torch.tensor([3e38, 1.0, -3e38, -torch.inf]).expand(100, -1)
    batch = batch_of(replace(filters, temperature=temperature), 7, torch.arange(100))
    assert sample(logits, batch).eq(0).all()
    assert sample(LOGITS.expand(100, -1), batch).eq(LOGITS.argmax()).all()


def test_a_very_high_temperature_is_uniform_over_what_is_not_banned() -> None:
    logits = torch.tensor([1e4, -1e4, -torch.inf, 0.0])
    for filters in (Filters(1e30), Filters(1e30, top_p=0.9999)):
        tokens = sample(logits.expand(20_000, -1), batch_of(filters, 11, torch.arange(20_000)))
        check_frequencies(tokens, np.array([1, 1, 0, 1]) / 3)
    assert sample(logits.expand(100, -1), batch_of(Filters(1e30, top_k=1), 11, torch.arange(100))).eq(0).all()


def test_top_p_that_keeps_most_of_a_large_vocabulary() -> None:
    """Far more tokens are kept than there are candidates: the draw is the race of all that the definition keeps."""
    logits = random_logits(4, 1, 49_152)
    filters = Filters(temperature=4.0, top_p=0.999)
    kept = torch.from_numpy(textbook(logits[0], filters) > 0)
    weights = softmax_weights(logits, torch.tensor([4.0])) * kept
    batch = batch_of(filters, 12, torch.arange(8))
    winners = race(weights.expand(8, -1).clone(), stream_keys(batch), torch.arange(49_152, dtype=torch.int32))
    assert torch.equal(sample(logits.expand(8, -1), batch), winners)


def test_an_empty_batch_draws_nothing() -> None:
    batch = batch_of(Filters(), 0, torch.arange(0))
    assert sample(torch.zeros(0, 5), batch).tolist() == []


def test_logits_are_left_as_they_were() -> None:
    logits = LOGITS.repeat(4, 1)
    for filters in SETTINGS:
        sample(logits, batch_of(filters, 1, torch.arange(4)))
    assert torch.equal(logits, LOGITS.repeat(4, 1))
