"""From a plan's integers to the layout that a backend reads, and results back in the plan's order."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.backend import (
    AttentionOptions,
    Backend,
    BatchLayout,
    HeadNorms,
    LayerCache,
    Rotation,
    SamplingBatch,
)
from kernels.gpu.launch import TARGETS
from kernels.reference import ReferenceBackend
from model.batch import batch_layout, make_batch
from model.contract import INVALID_TOKEN, Chunk, ChunkResult, Draw, StepPlan, StepResult
from model.decoder import Decoder
from model.loading.dummy import dummy_weights
from model.runner import ModelRunner
from model.sampling_params import SamplingParams
from tests.dummies import (
    CPU,
    GREEDY,
    LEARNED,
    SCALED,
    SMALL,
    SilentLauncher,
    decoding,
    drawing,
    drawn,
    drawn_logprobs,
    drawn_one_by_one,
    empty_cache,
    make_decoder,
    moved,
)

META = torch.device("meta")


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=6),
    st.sampled_from([1, 4, 16]),
)
def test_every_token_has_its_position_and_its_own_slot(lens: list[tuple[int, int]], block_size: int) -> None:
    lens = sorted(lens, key=lambda pair: pair[1])
    chunks, next_block = [], 0
    for start, count in lens:
        needed = -(-(start + count) // block_size) + 1  # One more than needed: a block for what comes next.
        blocks = range(next_block, next_block + needed)
        chunks.append(Chunk([0] * count, start, blocks if next_block % 2 else array("i", blocks)))
        next_block += needed
    layout = batch_layout(chunks, block_size, CPU)

    expected = [
        (start + i, chunk.blocks[(start + i) // block_size] * block_size + (start + i) % block_size)
        for chunk, (start, count) in zip(chunks, lens, strict=True)
        for i in range(count)
    ]
    assert list(zip(layout.positions.tolist(), layout.slots.tolist(), strict=True)) == expected
    assert len(set(layout.slots.tolist())) == len(expected)
    width = -(-max(start + count for start, count in lens) // block_size)
    assert layout.block_table.tolist() == [([*chunk.blocks] + [0] * width)[:width] for chunk in chunks]
    assert layout.context_lens.tolist() == [start + count for start, count in lens]
    assert layout.query_starts.diff().tolist() == [count for _, count in lens]
    assert layout.singles == sum(count == 1 for _, count in lens)
    assert (layout.max_query, layout.max_context) == (max(c for _, c in lens), max(s + c for s, c in lens))


def run(runner: ModelRunner, *chunks: Chunk) -> StepResult:
    return runner.start(StepPlan(chunks)).result()


def new_runner() -> ModelRunner:
    decoder = make_decoder()
    return ModelRunner(decoder, empty_cache(decoder), SMALL.max_context)


def generate(prompt: Sequence[int], count: int, params: SamplingParams = GREEDY) -> list[int]:
    """Alone, one token a step."""
    runner, blocks = new_runner(), range(16)
    tokens = drawn(run(runner, Chunk(prompt, 0, blocks, drawing(params))))
    while len(tokens) < count:
        chunk = Chunk([tokens[-1]], len(prompt) + len(tokens) - 1, blocks, drawing(params, tokens))
        tokens += drawn(run(runner, chunk))
    return tokens


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.data())
def test_results_come_in_the_order_of_the_plan(lengths: list[int], data: st.DataObject) -> None:
    """Whatever order the layout has: each draw is of its own chunk's last token."""
    prompts = [[(7 * index + i) % 97 for i in range(length)] for index, length in enumerate(lengths)]
    draws = data.draw(st.lists(st.booleans(), min_size=len(prompts), max_size=len(prompts)))
    chunks = [
        Chunk(prompt, 0, range(4 * index, 4 * index + 4), drawing() if draws[index] else ())
        for index, prompt in enumerate(prompts)
    ]
    alone = [generate(prompt, 1)[0] for prompt, draw in zip(prompts, draws, strict=True) if draw]
    result = run(new_runner(), *chunks)
    assert [len(chunk.tokens) for chunk in result.chunks] == draws
    assert drawn(result) == alone
    assert drawn_logprobs(result) == [None] * len(alone)


SAMPLED = SamplingParams(max_tokens=100, temperature=0.9, top_p=0.95, seed=3, min_tokens=3, stop_token_ids=(5, 6))


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_step_that_follows_one_whose_tokens_are_not_known_draws_the_same(params: SamplingParams) -> None:
    prompts, count = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]], 6
    runner = new_runner()
    outputs: list[list[int]] = [[] for _ in prompts]
    plan = [Chunk(prompt, 0, range(8 * i, 8 * i + 8), drawing(params)) for i, prompt in enumerate(prompts)]
    pending = runner.start(StepPlan(plan))
    for step in range(1, count):
        # In another order in every step: a draw is found by its index in the step before, wherever it went since.
        order = [(step + i) % 3 for i in range(3)]
        before = order if step == 1 else [(step - 1 + i) % 3 for i in range(3)]
        places = {request: (before if step > 1 else [0, 1, 2]).index(request) for request in order}
        ahead = [
            Chunk(
                [INVALID_TOKEN],
                len(prompts[request]) + step - 1,
                range(8 * request, 8 * request + 8),
                drawing(params, outputs[request], ahead=1),
                follows=places[request],
            )
            for request in order
        ]
        following = runner.start(StepPlan(ahead))
        for request, token in zip([0, 1, 2] if step == 1 else before, drawn(pending.result()), strict=True):
            outputs[request].append(token)
        pending = following
    for request, token in zip(order, drawn(pending.result()), strict=True):
        outputs[request].append(token)
    assert outputs == [generate(prompt, count, params) for prompt in prompts]


def test_what_follows_a_failed_draw_computes_something_and_spoils_nothing() -> None:
    everything = replace(GREEDY, min_tokens=9, stop_token_ids=tuple(range(97)))
    runner = new_runner()
    first = run(runner, decoding(3, 0, [0], everything), decoding(4, 0, [1]))
    assert drawn(first)[0] == INVALID_TOKEN
    second = run(
        runner,
        Chunk([INVALID_TOKEN], 1, [0], drawing(everything, ahead=1), follows=0),
        Chunk([INVALID_TOKEN], 1, [1], drawing(GREEDY, ahead=1), follows=1),
    )
    assert [drawn(first)[1], drawn(second)[1]] == generate([4], 2)


def test_a_failed_draw_is_a_token_of_the_vocabulary_to_what_follows() -> None:
    plan = StepPlan([Chunk([INVALID_TOKEN], 1, [index], follows=index) for index in (2, 0, 1)])
    batch = make_batch(plan, 4, CPU)
    assert batch.known_tokens(torch.tensor([INVALID_TOKEN, 7, 5])).tolist() == [5, 0, 7]


def test_a_step_that_draws_nothing_has_an_empty_result() -> None:
    result = run(new_runner(), Chunk([1, 2, 3], 0, [0]))
    assert result.chunks == [ChunkResult()]
    assert result.forward_seconds > 0


def test_a_cpu_computes_in_start_and_has_nothing_to_look_ahead_for() -> None:
    assert new_runner().lookahead == 0


def test_a_mask_may_come_when_its_step_has_been_started() -> None:
    assert drawn_one_by_one(new_runner(), [30, 7, 96, 0, 30]) == [30, 7, 96, 0, 30]


# What must not happen between asking a GPU for a step and asking for its result: the host waiting for the device.
# Tensors on the `meta` device have no values, so whatever looks at one fails by itself. Transfers that wait do not, nor
# do masks as indices, which need to be counted: those are looked for.


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | (kwargs or {})
        if any(argument.name == "non_blocking" for argument in func._schema.arguments):
            source = given.get("src", given["self"])
            assert result.device == source.device or given.get("non_blocking"), "a transfer that holds the host up"
        indices = given.get("indices") or []
        assert not any(index is not None and index.dtype == torch.bool for index in indices), "a mask is counted"
        return result


class NoFactoriesFromHostData(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            assert torch.device(kwargs.get("device") or CPU) == CPU, "host data is brought to the device unstaged"
        return func(*args, **kwargs)


class ShapesOnly(ReferenceBackend):
    """The reference backend where it looks at values, without them."""

    def rotate_and_store(
        self,
        qkv: Tensor,
        heads: int,
        norms: HeadNorms | None,
        rotation: Rotation | None,
        cache: LayerCache,
        slots: Tensor,
    ) -> Tensor:
        return qkv.new_empty(qkv.shape[0], heads, cache.keys.shape[3])

    def attend(self, q: Tensor, cache: LayerCache, layout: BatchLayout, options: AttentionOptions) -> Tensor:
        return torch.empty_like(q)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        return torch.empty_like(batch.seed)


def triton_that_launches_nothing() -> Backend:
    from kernels.gpu.backend import TritonBackend

    return TritonBackend(SilentLauncher(TARGETS["sm_90"]))


@pytest.mark.parametrize("backend", [ShapesOnly, triton_that_launches_nothing], ids=["shapes", "triton"])
@pytest.mark.parametrize("spec", [SMALL, SCALED, LEARNED], ids=lambda spec: spec.family)
def test_start_never_waits_for_the_device(backend: Callable[[], Backend], spec: Any) -> None:
    kernels = backend()
    weights = moved(dummy_weights(spec, kernels, torch.bfloat16, CPU), META)
    decoder = Decoder(spec, weights, kernels)
    runner = ModelRunner(decoder, empty_cache(decoder), spec.max_context)
    everything = SamplingParams(
        max_tokens=9,
        min_tokens=3,
        stop_token_ids=(1,),
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        presence_penalty=1.0,
        frequency_penalty=1.0,
        repetition_penalty=1.1,
        logit_bias=((3, 1.0),),
        logprobs=4,
    )
    draw = Draw(everything, [1, 2], [3], 1)
    first = StepPlan([decoding(3, 5, [1, 2]), Chunk([1] * 9, 4, range(4, 8), [draw]), Chunk([2] * 3, 0, [9])])
    second = StepPlan([Chunk([INVALID_TOKEN], 6, [1, 2], drawing(ahead=1), follows=0)])
    with NoWaiting(), NoFactoriesFromHostData():
        runner.start(first)
        runner.start(second)


def looks_at_a_value(logits: Tensor) -> object:
    return bool(logits.max() > 0)


def counts_a_mask(logits: Tensor) -> object:
    return logits[logits > 0]


def brings_a_list(logits: Tensor) -> object:
    return torch.tensor([1], device=logits.device)


def brings_a_tensor(logits: Tensor) -> object:
    return torch.ones(1).to(logits.device)


def copies_a_tensor(logits: Tensor) -> object:
    return logits[0].copy_(torch.ones(1))


@pytest.mark.parametrize("mistake", [looks_at_a_value, counts_a_mask, brings_a_list, brings_a_tensor, copies_a_tensor])
def test_what_waits_for_the_device_is_seen(mistake: Callable[[Tensor], object]) -> None:
    class Mistaken(ShapesOnly):
        def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
            mistake(logits)
            return super().sample(logits, batch)

    decoder = Decoder(SMALL, moved(make_decoder().weights, META), Mistaken())
    runner = ModelRunner(decoder, empty_cache(decoder), SMALL.max_context)
    with NoWaiting(), NoFactoriesFromHostData(), pytest.raises((RuntimeError, AssertionError)):
        runner.start(StepPlan([decoding(3, 5, [1, 2])]))


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("right", [0, 2, 4])
def test_the_draws_behind_right_drafts_are_those_of_single_steps(params: SamplingParams, right: int) -> None:
    """Beside a prompt and another request with drafts, whose draws are counted in the same result."""
    prompt, other = [3, 1, 4, 1, 5], [9, 2]
    expected, others = generate(prompt, 6, params), generate(other, 3, params)
    drafts = [*expected[1 : 1 + right], *((token + 1) % 97 for token in expected[1 + right : 5])]
    runner = new_runner()
    run(runner, Chunk(prompt, 0, range(8)), Chunk(other, 0, range(8, 16)))

    def verifying(known: Sequence[int], drafts: Sequence[int], start: int, blocks: Sequence[int]) -> Chunk:
        draws = [draw for ahead in range(1 + len(drafts)) for draw in drawing(params, known, ahead)]
        return Chunk([*known[-1:], *drafts], start, blocks, draws)

    chunks = [
        verifying(expected[:1], drafts, len(prompt), range(8)),
        Chunk([7, 7, 7, 7, 7, 7], 0, range(16, 20)),
        verifying(others[:1], others[1:2], len(other), range(8, 16)),
    ]
    first, nothing, second = run(runner, *chunks).chunks
    assert [*first.tokens[: 1 + right]] == expected[1 : 2 + right]
    assert len(first.tokens) == 5
    assert not nothing.tokens
    assert [*second.tokens] == others[1:]
