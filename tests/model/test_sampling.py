"""The transforms do what their definitions say to each row, and log-probabilities are the model's own."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from kernels.backend import Backend
from kernels.load import load_backend
from model.contract import INVALID_TOKEN, Draw, SamplingParams, TokenLogprobs
from model.sampling import TRANSFORMS, ban_early_stop, penalise_repetition, read_choice
from model.sampling import choose as choose_on_device

VOCAB = 40
BACKEND = load_backend(torch.device("cpu"), "reference")
PLAIN = SamplingParams(max_tokens=100)
GREEDY = replace(PLAIN, temperature=0.0)

deterministic = settings(derandomize=True, deadline=None)
token_lists = st.lists(st.integers(0, VOCAB - 1), max_size=12)


def choose(backend: Backend, logits: Tensor, draws: Sequence[Draw]) -> tuple[list[int], list[TokenLogprobs | None]]:
    return read_choice(choose_on_device(backend, logits, draws), draws)


def request(params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Draw:
    return Draw(params, prompt, output, len(output))


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32, allow_subnormal=False)


@st.composite
def any_draws(draw: st.DrawFn) -> Draw:
    params = SamplingParams(
        max_tokens=100,
        temperature=draw(st.sampled_from([0.0, 0.7, 1.5])),
        top_k=draw(st.sampled_from([0, 5])),
        top_p=draw(st.sampled_from([1.0, 0.8])),
        seed=draw(st.integers(0, 2**63 - 1)),
        min_tokens=draw(st.integers(0, 8)),
        stop_token_ids=tuple(draw(token_lists)),
        presence_penalty=draw(st.just(0.0) | numbers(-2, 2)),
        frequency_penalty=draw(st.just(0.0) | numbers(-2, 2)),
        repetition_penalty=draw(st.just(1.0) | numbers(0.5, 3)),
        logit_bias=tuple(
            draw(st.lists(st.tuples(st.integers(0, VOCAB - 1), st.just(-100.0) | numbers(-5, 5)), max_size=5))
        ),
        logprobs=draw(st.none() | st.integers(0, 5)),
    )
    return request(params, draw(token_lists), draw(token_lists))


batches = st.lists(any_draws(), min_size=1, max_size=6)


def random_logits(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def one_by_one(row: Sequence[float], draw: Draw) -> list[float]:
    """The transforms of one row, token by token."""
    params = draw.params
    edited = []
    for token, score in enumerate(row):
        score += sum(bias for biased, bias in params.logit_bias if biased == token)
        if token in draw.prompt or token in draw.output:
            score *= 1 / params.repetition_penalty if score > 0 else params.repetition_penalty
        count = list(draw.output).count(token)
        score -= params.presence_penalty * (count > 0) + params.frequency_penalty * count
        if token in params.stop_token_ids and len(draw.output) < params.min_tokens:
            score = -math.inf
        edited.append(score)
    return edited


@deterministic
@given(batches)
def test_transforms_are_their_definitions_token_by_token(draws: list[Draw]) -> None:
    logits = random_logits(len(draws))
    expected = torch.tensor([one_by_one(row.tolist(), draw) for row, draw in zip(logits, draws, strict=True)])
    for transform in TRANSFORMS:
        transform(logits, draws)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@deterministic
@given(st.lists(st.integers(0, VOCAB - 1), min_size=1), token_lists, numbers(0.5, 3))
def test_repetition_penalty_is_that_of_transformers(prompt: list[int], output: list[int], penalty: float) -> None:
    logits = random_logits(1)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), logits.clone())
    penalise_repetition(logits, [request(replace(PLAIN, repetition_penalty=penalty), prompt, output)])
    torch.testing.assert_close(logits, expected)


def test_rows_without_a_transform_are_not_touched() -> None:
    logits = random_logits(3)
    edited = logits.clone()
    biased = replace(PLAIN, logit_bias=((3, 1.0),), presence_penalty=1.0, repetition_penalty=2.0)
    draws = [request(PLAIN, [1], [2, 2]), request(biased, [1], [2]), request(PLAIN, [3], [])]
    for transform in TRANSFORMS:
        transform(edited, draws)
    assert torch.equal(edited[[0, 2]], logits[[0, 2]])
    assert not torch.equal(edited[1], logits[1])


def test_stop_tokens_are_banned_until_the_last_of_min_tokens() -> None:
    params = replace(GREEDY, min_tokens=2, stop_token_ids=(7,))
    logits = torch.zeros(3, VOCAB)
    ban_early_stop(logits, [request(params, [1], [0] * n) for n in range(3)])
    assert logits[:, 7].tolist() == [-math.inf, -math.inf, 0.0]


@deterministic
@given(batches, st.data())
def test_a_request_is_answered_alike_alone_and_in_any_batch(draws: list[Draw], data: st.DataObject) -> None:
    logits = random_logits(len(draws))
    tokens, logprobs = choose(BACKEND, logits.clone(), draws)
    row = data.draw(st.integers(0, len(draws) - 1))
    assert choose(BACKEND, logits[row : row + 1].clone(), [draws[row]]) == ([tokens[row]], [logprobs[row]])


@deterministic
@given(batches)
def test_logprobs_are_those_of_the_logits_before_any_transform(draws: list[Draw]) -> None:
    logits = random_logits(len(draws))
    scores = logits.double().log_softmax(-1)
    tokens, logprobs = choose(BACKEND, logits, draws)
    for row, (draw, token, reported) in enumerate(zip(draws, tokens, logprobs, strict=True)):
        top = draw.params.logprobs
        if top is None:
            assert reported is None
        else:
            assert reported is not None
            values, ids = scores[row].topk(top)
            assert reported.chosen == pytest.approx(scores[row, token].item(), abs=1e-5)
            assert reported.top_logprobs == pytest.approx(values.tolist(), abs=1e-5)
            assert reported.top_tokens == ids.tolist()


def test_top_tokens_of_a_large_vocabulary() -> None:
    logits = torch.zeros(1, 200_001).index_fill(1, torch.tensor([199_999]), 9.0)
    _, (reported,) = choose(BACKEND, logits, [request(replace(GREEDY, logprobs=1), [1], [])])
    assert reported is not None
    assert reported.top_tokens == [199_999]


def test_the_counter_is_the_number_of_generated_tokens() -> None:
    """Neither the prompt nor what was generated matters to the noise, only how much."""
    row = random_logits(1).repeat(30, 1)
    forwards = [request(replace(PLAIN, seed=4), [1], [0] * n) for n in range(30)]
    same, _ = choose(BACKEND, row.clone(), forwards)
    other, _ = choose(BACKEND, row.clone(), [request(d.params, [5, 6], [9] * len(d.output)) for d in forwards])
    assert same == other
    assert len(set(same)) > 1
    assert same != choose(BACKEND, row.clone(), [request(replace(PLAIN, seed=5), [1], d.output) for d in forwards])[0]


def test_a_token_that_is_still_being_drawn_counts() -> None:
    """A draw ahead of its predecessor's result: `index` is what matters, and it is one more than the output."""
    params = replace(PLAIN, seed=4, min_tokens=2, stop_token_ids=(7,))
    logits = random_logits(1).repeat(30, 1)
    behind, _ = choose(BACKEND, logits.clone(), [Draw(params, [1], [0] * (n + 1), n + 1) for n in range(30)])
    ahead, _ = choose(BACKEND, logits.clone(), [Draw(params, [1], [0] * n, n + 1) for n in range(30)])
    assert ahead == behind


def test_bias_decides_a_greedy_draw_and_is_no_ban() -> None:
    logits = random_logits(3)
    best = int(logits[2].argmax())
    every = tuple((token, -100.0) for token in range(VOCAB))
    draws = [
        request(replace(GREEDY, logit_bias=((11, 100.0),)), [1], []),
        # Two entries for one token add up.
        request(replace(GREEDY, logit_bias=((12, 50.0), (12, 50.0), (13, 60.0))), [1], []),
        request(replace(GREEDY, logit_bias=every), [1], []),
    ]
    assert choose(BACKEND, logits, draws)[0] == [11, 12, best]


def test_a_request_without_a_token_to_draw_is_invalid_and_the_others_are_not() -> None:
    logits = random_logits(4)
    logits[1, 5] = math.nan
    best = [int(i) for i in logits.nan_to_num().argmax(-1)]
    banned = replace(PLAIN, min_tokens=1, stop_token_ids=tuple(range(VOCAB)), logprobs=2)
    draws = [
        request(replace(GREEDY, logprobs=1), [1], []),
        request(replace(PLAIN, logprobs=1), [1], []),
        request(banned, [1], []),
        request(GREEDY, [1], []),
    ]
    tokens, logprobs = choose(BACKEND, logits, draws)
    assert tokens == [best[0], INVALID_TOKEN, INVALID_TOKEN, best[3]]
    assert logprobs[0] is not None
    assert logprobs[0].top_tokens == [best[0]]
    assert logprobs[1:] == [None, None, None]


def test_no_draws_choose_nothing() -> None:
    assert choose(BACKEND, torch.zeros(0, VOCAB), []) == ([], [])
