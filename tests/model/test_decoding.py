"""A plan in columns is the plan of its chunks one by one."""

from array import array
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from model.batch import make_batch
from model.contract import INVALID_TOKEN, Chunk, Decoding, Draw, Draws, StepPlan, StepResult
from model.inspection import InspectionRequest
from model.runner import ModelRunner
from model.sampling_params import SamplingParams
from tests.dummies import CPU, GREEDY, SMALL, empty_cache, make_decoder

SAMPLED = replace(GREEDY, temperature=0.9, top_k=20, seed=7)
PENALISED = replace(GREEDY, repetition_penalty=1.3, frequency_penalty=0.5, bad_words=((3, 4),))
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5]]
PARAMS = [SAMPLED, PENALISED, GREEDY]
MASK = bytes([0b00100100]) + bytes(12)
NEWCOMER = Chunk(
    [2, 7, 1, 8],
    0,
    [60],
    [Draw(replace(SAMPLED, logprobs=2), [2, 7, 1, 8], [], 0, row=3, allowed=MASK, candidates=3)],
    inspect=InspectionRequest(positions=(3,), lens=2),
)


def new_runner() -> ModelRunner:
    decoder = make_decoder()
    return ModelRunner(decoder, empty_cache(decoder), SMALL.max_context)


def in_columns(chunks: Sequence[Chunk]) -> Decoding:
    draws = [draw for chunk in chunks for draw in chunk.draws]
    return Decoding(
        tokens=[token for chunk in chunks for token in chunk.tokens],
        starts=[chunk.start for chunk in chunks],
        blocks=[chunk.blocks for chunk in chunks],
        follows=[chunk.follows for chunk in chunks],
        params=[draw.params for draw in draws],
        prompts=[draw.prompt for draw in draws],
        outputs=[draw.output for draw in draws],
        indices=[draw.index for draw in draws],
        rows=[draw.row for draw in draws],
    )


def tables() -> "list[array[int]]":
    return [array("i", range(20 * row, 20 * row + 20)) for row in range(len(PROMPTS))]


def chunks_of(outputs: Sequence[list[int]], promised: bool) -> list[Chunk]:
    """The next token of each of the requests, whose newest is still being drawn if it is promised."""
    requests = zip(PROMPTS, PARAMS, outputs, tables(), strict=True)
    return [
        Chunk(
            [INVALID_TOKEN if promised else output[-1]],
            len(prompt) + len(output) - 1 + promised,
            blocks,
            [Draw(params, prompt, output, len(output) + promised, row, fresh=False)],
            row if promised else None,
        )
        for row, (prompt, params, output, blocks) in enumerate(requests)
    ]


def test_columns_become_the_chunks_that_they_stand_for() -> None:
    chunks = chunks_of([[1, 2], [3], [4, 5, 6]], promised=True)
    plan = StepPlan([NEWCOMER], in_columns(chunks))
    assert plan.chunks == [*chunks, NEWCOMER]
    assert plan.tokens == 3 + 4
    draws = plan.draws()
    assert list(draws) == [draw for chunk in plan.chunks for draw in chunk.draws]
    assert (draws.params, draws.indices) == ([*PARAMS, NEWCOMER.draws[0].params], [3, 2, 4, 0])
    assert (len(draws), draws[1], draws[-1], draws.others) == (4, chunks[1].draws[0], *NEWCOMER.draws, NEWCOMER.draws)
    assert Draws.of(draws) is draws


@pytest.mark.parametrize("others", [[], [NEWCOMER], [NEWCOMER, Chunk([8], 3, [61]), Chunk([1, 2], 0, [62])]])
@pytest.mark.parametrize("promised", [False, True])
def test_a_batch_of_columns_is_that_of_the_chunks(others: list[Chunk], promised: bool) -> None:
    plan = StepPlan(others, in_columns(chunks_of([[1, 2], [3], [4, 5, 6]], promised)))
    batch, singly = make_batch(plan, 4, CPU), make_batch(StepPlan(plan.chunks), 4, CPU)
    for name, tensor in singly.layout.tensors().items():
        assert torch.equal(batch.layout.tensors()[name], tensor), name
    for name in ("tokens", "rows", "places", "sources"):
        assert torch.equal(getattr(batch, name), getattr(singly, name)), name
    assert (batch.layout.singles, batch.layout.max_query) == (singly.layout.singles, singly.layout.max_query)
    assert batch.begins == singly.begins[len(plan.decoding) :]


def started(runner: ModelRunner) -> list[list[int]]:
    """The first tokens of the requests, whose prompts are computed."""
    requests = enumerate(zip(PROMPTS, PARAMS, tables(), strict=True))
    chunks = [
        Chunk(prompt, 0, blocks, [Draw(params, prompt, [], 0, row)]) for row, (prompt, params, blocks) in requests
    ]
    return [[*chunk.tokens] for chunk in runner.start(StepPlan(chunks)).result().chunks]


def told(result: StepResult) -> list[tuple[object, ...]]:
    return [([*chunk.tokens], [*chunk.logprobs], [*chunk.distributions], chunk.inspection) for chunk in result.chunks]


def test_a_step_of_columns_gives_what_its_chunks_give() -> None:
    """Two steps, the second of which follows the first, beside a prompt."""

    def steps(columns: bool) -> list[StepResult]:
        runner = new_runner()
        outputs = started(runner)
        known, promised = chunks_of(outputs, promised=False), chunks_of(outputs, promised=True)
        plans = [StepPlan([NEWCOMER], in_columns(known)), StepPlan([], in_columns(promised))]
        pending = [runner.start(plan if columns else StepPlan(plan.chunks)) for plan in plans]
        return [step.result() for step in pending]

    for result, singly in zip(steps(columns=True), steps(columns=False), strict=True):
        assert len(result.tokens) == len(PROMPTS)
        assert told(result) == told(singly)


def test_params_of_columns_are_looked_at() -> None:
    """The settings of a batch are those of all its draws."""
    ending = SamplingParams(max_tokens=4, min_tokens=4, stop_token_ids=tuple(range(96)), temperature=0)
    runner = new_runner()
    outputs = started(runner)
    chunks = chunks_of(outputs, promised=False)
    chunks[2].draws = [replace(chunks[2].draws[0], params=ending)]
    assert runner.start(StepPlan([], in_columns(chunks))).result().tokens[2] == 96
