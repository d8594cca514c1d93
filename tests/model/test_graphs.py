"""A batch that is replayed comes to what it would have come to without graphs.

A fake capture runs the captured function again: everything but CUDA's own part is as on a GPU.
"""

import os
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.backend import Backend, BatchLayout, KVCache
from kernels.load import load_backend
from model.batch import batch_layout
from model.contract import Chunk
from model.decoder import Decoder
from model.graphs import PROMPTS, GraphedDecoder, buckets, shapes
from model.spec import DecoderSpec
from tests.dummies import CPU, LEARNED, SCALED, SMALL, RerunCapture, empty_cache, make_decoder

MAX_BATCH = 6
MAX_CONTEXT = 24
BLOCK_SIZE = 4


@pytest.fixture(scope="module", params=["reference", "triton"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("on a GPU, tests/model/test_native.py compares real graphs")
    return load_backend(CPU, request.param, batch_invariant=request.param == "triton")


def graphed(decoder: Decoder, cache: KVCache) -> tuple[GraphedDecoder, RerunCapture]:
    capture = RerunCapture()
    return GraphedDecoder(
        decoder, cache, max_batch=MAX_BATCH, max_context=MAX_CONTEXT, token_budget=600, capture=capture
    ), capture


def batch(counts: Sequence[tuple[int, int]], seed: int) -> tuple[Tensor, BatchLayout]:
    """Sequences of (tokens in the cache, new tokens), each with blocks of its own, in no order."""
    generator = torch.Generator().manual_seed(seed)
    free = torch.randperm(64, generator=generator).tolist()
    chunks = []
    for start, count in sorted(counts, key=lambda pair: pair[1]):
        blocks = [free.pop() for _ in range(-(-(start + count) // BLOCK_SIZE))]
        chunks.append(Chunk([0] * count, start, blocks))
    tokens = torch.randint(SMALL.vocab_size, (sum(count for _, count in counts),), generator=generator)
    return tokens, batch_layout(chunks, BLOCK_SIZE, CPU)


def filled_cache(decoder: Decoder, seed: int) -> KVCache:
    cache = empty_cache(decoder, block_size=BLOCK_SIZE)
    fill(cache, seed)
    return cache


def fill(cache: KVCache, seed: int) -> None:
    """As if every sequence had its past in it."""
    generator = torch.Generator().manual_seed(seed)
    for layer in cache.layers:
        layer.keys.normal_(generator=generator)
        layer.values.normal_(generator=generator)


def check(decoder: Decoder, batches: Sequence[Sequence[tuple[int, int]]], exactly: bool) -> RerunCapture:
    """Run the batches one after another, with and without graphs, each on a cache of its own.

    Before every batch the caches are filled with something else: what the one before stored must not come again.
    """
    ours, theirs = filled_cache(decoder, 0), filled_cache(decoder, 0)
    fast, capture = graphed(decoder, ours)
    rtol, atol = (0.0, 0.0) if exactly else (1e-4, 1e-5)
    with torch.inference_mode():
        for seed, counts in enumerate(batches):
            tokens, layout = batch(counts, seed)
            fill(ours, seed)
            fill(theirs, seed)
            found, expected = fast.forward(tokens, layout, ours), decoder.forward(tokens, layout, theirs)
            torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
            for mine, other in zip(ours.layers, theirs.layers, strict=True):
                torch.testing.assert_close(mine.keys, other.keys, rtol=rtol, atol=atol)
                torch.testing.assert_close(mine.values, other.values, rtol=rtol, atol=atol)
    return capture


decoding = st.tuples(st.integers(0, MAX_CONTEXT - 1), st.just(1))
prompts = st.tuples(st.integers(0, MAX_CONTEXT // 2), st.integers(2, MAX_CONTEXT // 2))
batches_with_graphs = st.lists(
    st.one_of(
        st.lists(decoding, min_size=1, max_size=MAX_BATCH),
        st.builds(
            list.__add__, st.lists(decoding, max_size=MAX_BATCH), st.lists(prompts, min_size=1, max_size=PROMPTS)
        ),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=20, deadline=None)
@given(batches_with_graphs)
@example([[(3, 1)] * 6, [(9, 1)] * 5])
@example([[(0, 5)] * 4, [(3, 1), (2, 3)], [(9, 1)] * 6])
def test_any_run_of_batches_comes_to_the_same(batches: list[list[tuple[int, int]]]) -> None:
    """A batch leaves nothing behind in the static buffers that a smaller one after it would see."""
    capture = check(make_decoder(), batches, exactly=False)
    assert capture.replays == len(batches)


def test_any_backend_comes_to_the_same(backend: Backend) -> None:
    """To the bit, where a batch's padding may not matter to it: not even the splits that the capacity allows do."""
    batches = [[(9, 1)] * 3, [(0, 1), (20, 1)], [(4, 1), (20, 1), (0, 3), (5, 9)]]
    check(make_decoder(backend=backend), batches, exactly=backend.name == "triton")


@pytest.mark.parametrize("spec", [SCALED, LEARNED], ids=lambda spec: spec.family)
def test_other_mathematics_comes_to_the_same(spec: DecoderSpec) -> None:
    check(make_decoder(spec), [[(9, 1)] * 3, [(0, 1), (20, 1)], [(20, 1), (0, 3), (5, 9)]], exactly=False)


def test_a_graph_is_captured_once_when_a_batch_first_needs_it() -> None:
    """And the buckets are filled: a batch of 5 takes the one for 6."""
    sizes = [1, 2, 2, 1, 3, 4, 5, 6, 3]
    capture = check(make_decoder(), [[(3, 1)] * size for size in sizes], exactly=False)
    assert (capture.captures, capture.replays) == (4, len(sizes))


def test_prompts_share_graphs_whether_or_not_something_decodes_beside() -> None:
    batches = [[(0, 3)], [(2, 9), (0, 20)], [(5, 1), (2, 4)], [(5, 1)] * 4 + [(0, 8)], [(5, 1)] * 5 + [(0, 8)]]
    capture = check(make_decoder(), batches, exactly=False)
    assert (capture.captures, capture.replays) == (2, len(batches))


@pytest.mark.parametrize(
    "counts",
    [[(MAX_CONTEXT, 1)], [(1, 1)] * (MAX_BATCH + 1), [(0, 2)] * (PROMPTS + 1), [(1, 1)] * (MAX_BATCH + 1) + [(0, 2)]],
    ids=["too long", "too many", "too many prompts", "too many beside a prompt"],
)
def test_what_has_no_graph_is_computed_without(counts: list[tuple[int, int]]) -> None:
    capture = check(make_decoder(), [counts], exactly=True)
    assert (capture.captures, capture.replays) == (0, 0)


def test_another_cache_is_not_mistaken_for_the_captured_one() -> None:
    decoder = make_decoder()
    fast, capture = graphed(decoder, filled_cache(decoder, 0))
    tokens, layout = batch([(5, 1)], 0)
    found = fast.forward(tokens, layout, filled_cache(decoder, 1))
    assert torch.equal(found, decoder.forward(tokens, layout, filled_cache(decoder, 1)))
    assert capture.captures == 0


@given(st.integers(1, 600), st.integers(0, 600), st.integers(1, 512))
def test_the_first_shape_with_room_for_prompts_is_the_smallest(most: int, singles: int, tokens: int) -> None:
    fitting = [shape for shape in shapes(most, 2048) if shape.singles >= singles and shape.prompt_tokens >= tokens]
    assert bool(fitting) == (singles <= most)
    assert fitting[:1] == sorted(fitting, key=sum)[:1]


@given(st.integers(1, 600), st.integers(1, 2048))
def test_shapes_with_prompts_stay_within_the_budget(most: int, token_budget: int) -> None:
    mixed = [shape for shape in shapes(most, token_budget) if shape.prompt_tokens]
    assert all(sum(shape) <= token_budget for shape in mixed)
    assert bool(mixed) == (token_budget >= 64)


@given(st.integers(1, 600))
def test_buckets_end_at_the_most_and_waste_less_than_half(most: int) -> None:
    sizes = buckets(most)
    assert list(sizes) == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, most)
    assert all(larger <= 2 * smaller for smaller, larger in pairwise(sizes))
    assert len(sizes) <= 2 * most.bit_length()
