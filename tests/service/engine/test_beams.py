"""Beam search in the engine: a search finds what it finds alone, whatever else runs and however few the blocks."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest

from model.contract import Chunk, ChunkResult, Draw
from model.sampling_params import SamplingParams
from model.token_logprobs import TokenLogprobs
from service.engine.core import EngineCore
from service.engine.messages import Beam, BeamSearch, Cancel, Delta, EngineRequest, Submit
from tests.service.engine.fakes import VOCAB_SIZE, FakeRunner

STOP = 3


def logprobs(tokens: Sequence[int]) -> dict[int, float]:
    """A distribution that depends on all tokens before."""
    digest = hashlib.sha256(",".join(map(str, tokens)).encode()).digest()
    weights = [1 + digest[token] + 256 * digest[8 + token] for token in range(VOCAB_SIZE)]
    return {token: math.log(weight / sum(weights)) for token, weight in enumerate(weights)}


class BeamRunner(FakeRunner):
    """Tells the likeliest tokens after what it finds in a chunk's blocks."""

    def _result(self, chunk: Chunk, followed: list[tuple[Draw, int]]) -> ChunkResult:
        result = super()._result(chunk, followed)
        if not chunk.draws or (top := chunk.draws[0].params.logprobs) is None or -1 in result.tokens:
            return result
        stop = chunk.start + chunk.known
        found = logprobs([self._slots[self._slot(chunk, position)] for position in range(stop)])
        likeliest = sorted(found, key=lambda token: -found[token])[:top]
        return replace(result, logprobs=[TokenLogprobs(0.0, likeliest, [found[token] for token in likeliest], 1)])


def search(id: int, prompt: list[int], found: BeamSearch, max_tokens: int = 6) -> Submit:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, stop_token_ids=(STOP,), logprobs=found.top(1))
    return Submit(id, EngineRequest(prompt, params, beams=found))


def run(core: EngineCore) -> dict[int, list[Delta]]:
    deltas: dict[int, list[Delta]] = {}
    while (report := core.step()) is not None:
        core.check()
        for delta in report.deltas:
            deltas.setdefault(delta.id, []).append(delta)
    assert not core.has_work
    assert core.stats().blocks_used == core.stats().running == core.stats().waiting == 0
    return deltas


def alone(message: Submit) -> list[Beam]:
    core = EngineCore(BeamRunner(64, 4), token_budget=64, max_running=8)
    core.submit(message)
    (delta,) = run(core)[message.id]
    return [*delta.beams]


def test_a_wide_search_finds_the_likeliest_of_all_completions() -> None:
    """As wide as there are completions of two tokens, it misses none."""
    prompt = [1, 2]
    wide = BeamSearch(64, 64, length_penalty=0.0, early_stopping="never", logprobs=1)
    found = alone(search(0, prompt, wide, max_tokens=2))
    every = {}
    for first, second in product(range(VOCAB_SIZE), repeat=2):
        tokens = (first,) if first == STOP else (first, second)
        every[tokens] = sum(logprobs([*prompt, *tokens[:place]])[token] for place, token in enumerate(tokens))
    best = sorted(every, key=lambda tokens: -every[tokens])
    assert [tuple(beam.tokens) for beam in found] == best
    for beam in found:
        assert beam.score == pytest.approx(every[tuple(beam.tokens)])
        assert beam.logprobs is not None
        assert beam.score == pytest.approx(sum(entry.chosen for entry in beam.logprobs))
        assert {len(entry.top_tokens) for entry in beam.logprobs} == {1}
        assert beam.finish_reason == ("stop" if beam.tokens[-1] == STOP else "length")


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize(("blocks", "max_running"), [(64, 8), (8, 8), (5, 8), (64, 2), (5, 1)])
def test_a_search_finds_the_same_among_others(blocks: int, max_running: int, lookahead: int) -> None:
    """Also where its beams cannot all run at the same time, and lose their blocks to one another."""
    searches = [
        search(id, [id % VOCAB_SIZE] * (1 + 2 * id), BeamSearch(width, width, penalty, early))
        for id, (width, penalty, early) in enumerate(
            [(1, 1.0, False), (3, 0.0, "never"), (4, 2.0, True), (4, 1.0, False)]
        )
    ]
    core = EngineCore(BeamRunner(blocks, 4, lookahead), token_budget=16, max_running=max_running)
    for message in searches:
        core.submit(message)
        core.submit(Submit(10 + message.id, EngineRequest([7, 6, 5], SamplingParams(max_tokens=9))))
    deltas = run(core)
    for message in searches:
        (delta,) = deltas[message.id]
        assert [*delta.beams] == alone(message)
        assert delta.finish_reason == delta.beams[0].finish_reason
        assert delta.tokens == []


def test_beams_share_the_blocks_of_their_common_beginning() -> None:
    runner = BeamRunner(64, 4)
    core = EngineCore(runner, token_budget=64, max_running=8)
    core.submit(search(0, [1] * 32, BeamSearch(4, 4), max_tokens=4))
    run(core)
    assert [len(plan.chunks) for plan in runner.plans] == [1, 4, 4, 4]
    for plan in runner.plans[1:]:
        assert len({block for chunk in plan.chunks for block in chunk.blocks}) == 8 + 4
        assert all(len(chunk.tokens) <= 4 for chunk in plan.chunks)
    totals = core.stats().totals
    assert totals.prompt_tokens == totals.prefix_queries == 32


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("way", ["cancel", "poison", "failure"])
def test_a_search_ends_as_one(way: str, lookahead: int) -> None:
    runner = BeamRunner(64, 4, lookahead)
    core = EngineCore(runner, token_budget=64, max_running=8)
    core.submit(search(0, [1, 2, 3], BeamSearch(3, 3), max_tokens=9))
    deltas = [delta for _ in range(4) if (report := core.step()) for delta in report.deltas]
    assert deltas == []
    if way == "cancel":
        core.cancel(Cancel(0))
    if way == "poison":
        runner.poisoned_chunks = {1}
    if way == "failure":
        runner.faulty = {1}
    (delta,) = run(core)[0]
    assert delta.finish_reason == ("abort" if way == "cancel" else "error")
