"""Drafts on a real decoder change how many steps there are, and nothing of what is drawn."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from model.runner import ModelRunner
from model.sampling_params import SamplingParams
from service.engine.core import EngineCore
from service.engine.drafts import DraftPolicy, look_up
from service.engine.messages import Counters, Delta, EngineRequest, Submit
from tests.dummies import SMALL, empty_cache, make_decoder

FEW_TOKENS = replace(SMALL, vocab_size=4)
"""With four tokens every run of three soon comes again, so that there is always something to guess."""


def completed(prompts: Sequence[list[int]], draft_tokens: int, **params: Any) -> tuple[list[list[Delta]], Counters]:
    """The deltas of each prompt, all of them at work together, and the engine's counts."""
    decoder = make_decoder(FEW_TOKENS)
    runner = ModelRunner(decoder, empty_cache(decoder, blocks=16 * len(prompts)), decoder.spec.max_context)
    core = EngineCore(
        runner,
        token_budget=1024,
        max_running=len(prompts),
        drafts=DraftPolicy(guess=look_up, tokens=draft_tokens, running=len(prompts)),
    )
    for id, prompt in enumerate(prompts):
        core.submit(Submit(id, EngineRequest(prompt, SamplingParams(**({"max_tokens": 24, "seed": id} | params)))))
    deltas: list[list[Delta]] = [[] for _ in prompts]
    while report := core.step():
        for delta in report.deltas:
            deltas[delta.id].append(delta)
    core.check()
    return deltas, core.stats().totals


def tokens(deltas: Sequence[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


PROMPTS = [[0, 1, 2, 3, 0, 1, 2], [3, 3, 3, 1], [2], [1, 0, 1, 0, 1, 0, 1]]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 1.0, "logit_bias": ((2, 1.5),)},
        {"temperature": 1.0, "stop_token_ids": (3,), "min_tokens": 5},
        {"temperature": 1.0, "logprobs": 2},
    ],
    ids=lambda params: "-".join(params),
)
def test_every_token_is_that_of_single_steps(params: dict[str, Any]) -> None:
    plain, without = completed(PROMPTS, 0, **params)
    drafted, counters = completed(PROMPTS, 4, **params)
    assert [tokens(deltas) for deltas in drafted] == [tokens(deltas) for deltas in plain]
    assert [deltas[-1].finish_reason for deltas in drafted] == [deltas[-1].finish_reason for deltas in plain]
    for fast, slow in zip(drafted, plain, strict=True):
        chosen = [[entry.chosen for delta in deltas for entry in delta.logprobs or ()] for deltas in (fast, slow)]
        assert chosen[0] == pytest.approx(chosen[1], abs=1e-4)
        assert len(chosen[0]) == (len(tokens(fast)) if "logprobs" in params else 0)
    assert 0 < counters.accepted_tokens <= counters.drafted_tokens
    assert counters.drafts <= counters.drafted_tokens
    assert counters.steps <= without.steps
    assert without.drafts == 0


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_a_draw_that_reads_the_output_gets_no_drafts(penalty: str) -> None:
    plain, _ = completed(PROMPTS, 0, **{penalty: 1.3})
    drafted, counters = completed(PROMPTS, 4, **{penalty: 1.3})
    assert [tokens(deltas) for deltas in drafted] == [tokens(deltas) for deltas in plain]
    assert counters.drafts == 0
