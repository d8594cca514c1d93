"""Paged attention compiled for the GPU, in its dtypes and at the lengths it serves, against float64, and to the bit."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from kernels.backend import AttentionOptions
from kernels.gpu.attention import attend
from kernels.gpu.decode import SPLIT, Decoding
from kernels.gpu.launch import JitLauncher, device_target
from kernels.gpu.prefill import PrefillWarps
from kernels.reference import decode
from tests.kernels.gpu.cases import (
    FP8,
    PADDING,
    PADDING_BEHIND_PROMPTS,
    AttentionCase,
    Lengths,
    attention_case,
    part_of,
    poison,
)

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAUNCH = JitLauncher(device_target(DEVICE))
HALF_STEP = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""How far rounding takes a number from itself, relative to it."""
FORMS = {"bf16": (torch.bfloat16, None), "fp16": (torch.float16, None), "fp8": (torch.bfloat16, FP8)}
"""The dtype of the queries, and the cache's, where it is another."""
FEATURES = ("plain", "window-1", "window-40", "window-1000", "softcap", "alibi", "sinks", "all")
RAGGED: Lengths = [
    PADDING,
    (0, 1),
    (37, 1),
    (SPLIT - 1, 1),
    (SPLIT, 1),
    (4000, 1),
    (0, 2),
    (3, 70),
    (700, 130),
    (0, 513),
]

forms = pytest.mark.parametrize("form", FORMS)


def make(
    form: str, lengths: Lengths, *, heads: int = 32, kv_heads: int = 8, dim: int = 128, page: int = 64, seed: int = 0
) -> AttentionCase:
    dtype, cache_dtype = FORMS[form]
    return attention_case(
        lengths,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        block_size=page,
        dtype=dtype,
        cache_dtype=cache_dtype,
        device=DEVICE,
        seed=seed,
    )


def options_of(feature: str, case: AttentionCase) -> AttentionOptions:
    _, heads, dim = case.q.shape
    plain = AttentionOptions(scale=dim**-0.5)
    generator = torch.Generator(DEVICE).manual_seed(7)
    slopes = torch.rand(heads, device=DEVICE, generator=generator)
    sinks = torch.randn(heads, device=DEVICE, generator=generator) * 3
    kind, _, width = feature.partition("-")
    match kind:
        case "plain":
            return plain
        case "window":
            return replace(plain, window=int(width))
        case "softcap":
            return replace(plain, softcap=2.0)
        case "alibi":
            return replace(plain, alibi_slopes=slopes)
        case "sinks":
            return replace(plain, sinks=sinks)
        case "all":
            return replace(plain, window=300, softcap=2.0, alibi_slopes=slopes, sinks=sinks)
    raise ValueError(feature)


def run(case: AttentionCase, options: AttentionOptions, warps: PrefillWarps | None = None) -> Tensor:
    return attend(LAUNCH, case.q, case.cache, case.layout, options, prefill=warps)


def exact(case: AttentionCase, options: AttentionOptions) -> tuple[Tensor, Tensor]:
    """Attention in float64, one sequence after another, and the same weights' sum of the values' magnitudes."""
    starts, contexts = case.layout.query_starts.tolist(), case.layout.context_lens.tolist()
    parts = [
        exact_sequence(case, options, sequence, begin, end, context)
        for sequence, ((begin, end), context) in enumerate(zip(pairwise(starts), contexts, strict=True))
    ]
    sums, magnitudes = zip(*parts, strict=True)
    return torch.cat(sums), torch.cat(magnitudes)


def exact_sequence(
    case: AttentionCase, options: AttentionOptions, sequence: int, begin: int, end: int, context: int
) -> tuple[Tensor, Tensor]:
    size, kv_heads = case.cache.keys.shape[1:3]
    at = torch.arange(context, device=DEVICE)
    slots = case.layout.block_table[sequence][at // size].long() * size + at % size
    keys = decode(case.cache.keys.flatten(0, 1)[slots], case.cache.key_scales).double()
    values = decode(case.cache.values.flatten(0, 1)[slots], case.cache.value_scales).double()
    q = case.q[begin:end].double().unflatten(1, (kv_heads, -1))
    distance = torch.arange(context - (end - begin), context, device=DEVICE)[:, None] - at

    scores = torch.einsum("nkgd,ckd->kgnc", q, keys) * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if options.alibi_slopes is not None:
        scores = scores - options.alibi_slopes.double().view(kv_heads, -1, 1, 1) * distance
    hidden = distance < 0
    if options.window is not None:
        hidden |= distance >= options.window
    scores = scores.masked_fill(hidden, float("-inf"))
    if options.sinks is not None:
        sinks = options.sinks.double().view(kv_heads, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :context]
    sums, magnitudes = (torch.einsum("kgnc,ckd->nkgd", weights, v).flatten(1, 2) for v in (values, values.abs()))
    return sums, magnitudes


def check(case: AttentionCase, feature: str = "plain", warps: PrefillWarps | None = None) -> None:
    """Off by no more than rounding the weights for the tensor cores, then the result, and some of float32's.

    With an FP8 cache the tensor cores take float16.
    """
    options = options_of(feature, case)
    got = run(case, options, warps)
    expected, magnitude = exact(case, options)
    operand = torch.float16 if case.cache.keys.dtype == FP8 else case.q.dtype
    bound = (HALF_STEP[operand] + 1e-4) * magnitude + HALF_STEP[got.dtype] * expected.abs() + 1e-6
    worst = ((got.double() - expected).abs() / bound).max()
    assert float(worst) <= 1.05, f"{float(worst)} times what rounding explains"


@forms
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 192, 256])
def test_head_dimensions(form: str, dim: int) -> None:
    check(make(form, RAGGED, dim=dim))


@pytest.mark.parametrize(
    ("form", "feature"),
    [*(("bf16", feature) for feature in FEATURES), ("fp16", "all"), ("fp8", "window-40"), ("fp8", "all")],
)
def test_features(form: str, feature: str) -> None:
    check(make(form, RAGGED), feature)


@pytest.mark.parametrize("page", [16, 32, 48, 64, 128])
@pytest.mark.parametrize("form", ["bf16", "fp8"])
def test_pages(form: str, page: int) -> None:
    lengths = [(page - 1, 1), (page, 1), (2000, 1), (2 * page, 3), (page - 1, page), (900, 300)]
    check(make(form, lengths, page=page), "window-1000")
    check(make(form, lengths, page=page))


@pytest.mark.parametrize("heads", [(9, 3), (28, 4), (32, 32), (16, 1), (64, 8)], ids=str)
def test_heads_that_share_a_kv_head(heads: tuple[int, int]) -> None:
    check(make("bf16", RAGGED, heads=heads[0], kv_heads=heads[1]))


@forms
@pytest.mark.parametrize("feature", ["plain", "sinks", "window-1000"])
def test_long_contexts(form: str, feature: str) -> None:
    """Up to 128K beside short ones, and a chunk of a long prompt."""
    lengths = [(40, 1), (2**17 - 1, 1), (100_000, 1), PADDING, (5000, 1), (60_000, 100)]
    check(make(form, lengths, heads=8, kv_heads=2), feature)


@pytest.mark.parametrize("count", [1, 32, 33, 200])
def test_many_that_decode(count: int) -> None:
    chance = random.Random(count)
    check(make("bf16", [(chance.randrange(3000), 1) for _ in range(count)]))


@forms
@pytest.mark.parametrize("page", [16, 64])
def test_pages_beyond_what_32_bits_count(form: str, page: int) -> None:
    """The last pages of a pool of more than 2^31 elements, which is poisoned wherever a wrapped offset could lead."""
    near = make(form, [(20, 1), (1500, 1), (700, 90)], page=page)
    used, _, kv_heads, dim = near.cache.keys.shape
    pages = 2**31 // (page * kv_heads * dim) + used
    far = [torch.empty(pages, page, kv_heads, dim, dtype=near.cache.keys.dtype, device=DEVICE) for _ in range(2)]
    for pool, stored in zip(far, near.cache[:2], strict=True):
        poison(pool)
        pool[-used:].copy_(stored)
    assert far[0].numel() > 2**31
    layout = replace(near.layout, block_table=near.layout.block_table + (pages - used))
    moved = replace(near, cache=near.cache._replace(keys=far[0], values=far[1]), layout=layout)
    assert torch.equal(run(moved, options_of("plain", near)), run(near, options_of("plain", near)))


def random_lengths(seed: int, singles: int, prompts: int) -> Lengths:
    """Sequences that decode, padding among them, then prompts and chunks of them."""
    chance = random.Random(seed)
    decoding = [PADDING if chance.random() < 0.2 else (chance.randrange(2500), 1) for _ in range(singles)]
    chunks = [(chance.choice([0, chance.randrange(1500)]), chance.randrange(2, 400)) for _ in range(prompts)]
    return [*decoding, *sorted(chunks, key=lambda chunk: chunk[1])]


@forms
@pytest.mark.parametrize("feature", ["plain", "all"])
@pytest.mark.parametrize(("singles", "prompts"), [(8, 0), (40, 0), (3, 4)])
def test_a_graph_changes_no_bit(form: str, feature: str, singles: int, prompts: int) -> None:
    """A graph captured for the longest contexts, with other contents, contexts and pages each time it is replayed.

    What a graph fixes is how many sequences decode, and how many tokens each prompt has.
    """
    new = [count for _, count in random_lengths(0, singles, prompts)]
    static = make(form, [(3000, count) for count in new])
    options = options_of(feature, static)
    run(static, options)  # Compiled.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(static, options)
    for seed in range(1, 5):
        contexts = random.Random(seed)
        lengths = [(contexts.randrange(-1 if count == 1 else 0, 3000), count) for count in new]
        case = make(form, lengths, seed=seed)
        refill(static, case)
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, run(case, options)), lengths


def refill(static: AttentionCase, case: AttentionCase) -> None:
    """Copy the contents of `case` to where a graph of `static` finds them."""
    static.q.copy_(case.q)
    for place, stored in zip(static.cache, case.cache, strict=True):
        if place is not None and stored is not None:
            place[: len(stored)].copy_(stored)
    for name in ("query_starts", "context_lens", "slots", "positions"):
        getattr(static.layout, name).copy_(getattr(case.layout, name))
    table = case.layout.block_table
    static.layout.block_table[:, : table.shape[1]].copy_(table)


@forms
@pytest.mark.parametrize("feature", ["plain", "window-40", "all"])
@pytest.mark.parametrize("seed", range(3))
def test_a_sequence_alone_is_to_the_bit_what_it_is_in_a_batch(form: str, feature: str, seed: int) -> None:
    case = make(form, random_lengths(seed, singles=4 + 30 * seed, prompts=5), page=16 << seed, seed=seed)
    options = options_of(feature, case)
    together = run(case, options)
    assert bool(together.isfinite().all())
    for sequence, (begin, end) in enumerate(pairwise(case.layout.query_starts.tolist())):
        assert torch.equal(run(part_of(case, sequence, 0, end - begin), options), together[begin:end]), sequence


@forms
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
@pytest.mark.parametrize("feature", ["plain", "window-40", "all"])
def test_a_prompt_in_chunks_is_to_the_bit_what_it_is_whole(form: str, dim: int, feature: str) -> None:
    """Chunks of two tokens and more: a single one is computed as one that decodes."""
    case = make(form, [(0, 1100)], heads=8, kv_heads=2, dim=dim)
    options = options_of(feature, case)
    whole = run(case, options)
    for seed in range(4):
        cuts = sorted(random.Random(seed).sample(range(2, 1098, 2), k=1 + 2 * seed))
        for first, last in pairwise([0, *cuts, 1100]):
            assert torch.equal(run(part_of(case, 0, first, last), options), whole[first:last]), (first, last)


@forms
@pytest.mark.parametrize("feature", ["plain", "all"])
@pytest.mark.parametrize("seed", range(3))
def test_who_combines_splits_changes_no_bit(form: str, feature: str, seed: int) -> None:
    """Whichever program is the last to finish, and whether one of them combines the splits or a second kernel does."""
    case = make(form, random_lengths(seed, singles=4 + 100 * seed, prompts=0), seed=seed)
    options = options_of(feature, case)
    apart = attend(LAUNCH, case.q, case.cache, case.layout, options, Decoding(folded=False))
    for multiprocessors in (1, 31, LAUNCH.target.multiprocessors, 1000):
        launch = JitLauncher(replace(LAUNCH.target, multiprocessors=multiprocessors))
        for _ in range(5):
            got = attend(launch, case.q, case.cache, case.layout, options, Decoding(folded=True))
            assert torch.equal(got, apart)


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_values_of_an_fp8_cache_in_pairs_are_those_alone(dim: int) -> None:
    case = make("fp8", random_lengths(3, singles=40, prompts=0), dim=dim)
    options = options_of("all", case)
    alone, pairs = (
        attend(LAUNCH, case.q, case.cache, case.layout, options, Decoding(paired=paired)) for paired in (False, True)
    )
    torch.testing.assert_close(pairs, alone, rtol=2**-7, atol=2**-7)


@forms
def test_two_runs_are_alike_to_the_bit(form: str) -> None:
    case = make(form, random_lengths(5, singles=20, prompts=5))
    first = run(case, options_of("all", case))
    for _ in range(20):
        assert torch.equal(run(case, options_of("all", case)), first)


hopper = pytest.mark.skipif(LAUNCH.target.arch != 90, reason="a kernel for Hopper alone")
HOPPER = {"turns": PrefillWarps(), "no turns": PrefillWarps(turns=False), "3 stages": PrefillWarps(stages=3)}


@hopper
@pytest.mark.parametrize("warps", HOPPER)
@pytest.mark.parametrize("form", ["bf16", "fp16"])
@pytest.mark.parametrize("page", [16, 64, 128, 256])
def test_hoppers_own_kernel(page: int, form: str, warps: str) -> None:
    lengths = [*RAGGED, (900, 1100), (2 * page, 2000), *PADDING_BEHIND_PROMPTS]
    for heads, kv_heads in ((32, 8), (28, 4), (4, 4)):
        check(make(form, lengths, heads=heads, kv_heads=kv_heads, page=page), warps=HOPPER[warps])
    check(make(form, [(60_000, 100), (0, 5000)], heads=8, kv_heads=2, page=page), warps=HOPPER[warps])


@hopper
@pytest.mark.parametrize("warps", HOPPER)
def test_hoppers_own_kernel_is_alike_to_the_bit_alone_in_a_batch_in_chunks_and_again(warps: str) -> None:
    case = make("bf16", random_lengths(5, singles=3, prompts=9))
    options = options_of("plain", case)
    together = run(case, options, HOPPER[warps])
    for _ in range(20):
        assert torch.equal(run(case, options, HOPPER[warps]), together)
    for sequence, (begin, end) in enumerate(pairwise(case.layout.query_starts.tolist())):
        cuts = [0, (end - begin) // 2, end - begin] if end - begin > 3 else [0, end - begin]
        for first, last in pairwise(cuts):
            alone = run(part_of(case, sequence, first, last), options, HOPPER[warps])
            assert torch.equal(alone, together[begin + first : begin + last]), (sequence, first, last)
