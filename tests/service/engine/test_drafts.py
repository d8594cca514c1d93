import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from model.contract import ChunkResult, StepPlan, StepResult
from model.sampling_params import SamplingParams
from service.engine.blocks import BlockPool
from service.engine.drafts import WIDTH, DraftPolicy, look_up
from service.engine.request import Request
from service.engine.scheduler import Scheduler


def request(prompt: list[int], output: list[int]) -> Request:
    return Request(1, prompt, SamplingParams(max_tokens=100), output=output)


def test_what_followed_the_same_tokens_last_time_is_guessed() -> None:
    assert look_up(request([1, 2, 3, 4, 5, 6, 9, 1, 2, 3, 7, 8, 0], [1, 2, 3]), 2) == [7, 8]


def test_a_guess_goes_from_the_prompt_into_the_output() -> None:
    assert look_up(request([1, 2, 3, 4], [5, 6, 1, 2, 3]), 5) == [4, 5, 6, 1, 2]


def test_nothing_is_guessed_without_an_earlier_occurrence() -> None:
    assert list(look_up(request([1, 2, 3], []), 4)) == []
    assert list(look_up(request([1, 2], [1]), 4)) == []
    assert list(look_up(request([1, 2, 3, 4, 5, 6], []), 4)) == []


def slowly(tokens: list[int], most: int) -> list[int]:
    """The guess by its definition."""
    for stop in range(len(tokens) - 1, WIDTH - 1, -1):
        if tokens[stop - WIDTH : stop] == tokens[-WIDTH:]:
            return tokens[stop : stop + most]
    return []


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 5))
def test_guesses_follow_a_growing_output(seed: int, length: int, most: int) -> None:
    rng = random.Random(seed)
    prompt = [rng.randrange(3) for _ in range(length)]
    output: list[int] = []
    growing = request(prompt, output)
    for _ in range(20):
        assert list(look_up(growing, most)) == slowly([*prompt, *output], most)
        output += [rng.randrange(3) for _ in range(rng.randint(1, 3))]


CHAIN = [[0.1, 0.6, 0.2, 0.1], [0.2, 0.1, 0.6, 0.1], [0.5, 0.2, 0.1, 0.2], [0.25, 0.25, 0.25, 0.25]]
"""Probability of each of four tokens after each of them."""


def drawn(plan: StepPlan) -> StepResult:
    """Tokens drawn from `CHAIN`, each by its request's seed and its own index alone, as a runner does."""
    chunks = []
    for chunk in plan.chunks:
        before = chunk.tokens[chunk.known - 1 :]
        tokens = [
            random.Random(f"{draw.params.seed}/{draw.index}").choices(range(4), CHAIN[last])[0]
            for draw, last in zip(chunk.draws, before, strict=False)
        ]
        chunks.append(ChunkResult(tokens, [None] * len(tokens)))
    plain = len(plan.decoding)
    return StepResult(chunks[plain:], [token for chunk in chunks[:plain] for token in chunk.tokens])


@pytest.mark.parametrize("draft_tokens", [0, 1, 4])
def test_tokens_are_distributed_as_the_model_says_whatever_is_guessed(draft_tokens: int) -> None:
    """Pairs of neighbouring tokens by the first of them, in many completions of a prompt with much to look up."""
    pool = BlockPool(512, 4)
    drafts = DraftPolicy(guess=look_up, tokens=draft_tokens, running=64)
    scheduler = Scheduler(pool, token_budget=256, max_running=64, drafts=drafts)
    requests = [
        Request(seed, [0, 1, 2, 0, 1, 2, 3, 0, 1, 2], SamplingParams(max_tokens=8, seed=seed)) for seed in range(1500)
    ]
    for request in requests:
        scheduler.add(request)
    while plan := scheduler.plan(0.0):
        scheduler.commit(drawn(plan), 0.0)
    counters = scheduler.counters
    assert (counters.accepted_tokens > len(requests) / 4) == (draft_tokens > 0)
    assert (counters.accepted_tokens < counters.drafted_tokens) == (draft_tokens > 0)
    pairs = Counter((last, token) for r in requests for last, token in zip([2, *r.output], r.output, strict=False))
    for last, chances in enumerate(CHAIN):
        seen = [pairs[last, token] for token in range(4)]
        assert stats.chisquare(seen, [sum(seen) * chance for chance in chances]).pvalue > 1e-4
