"""The transforms do what their definitions say to each row, and log-probabilities are the model's own."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import NoBadWordsLogitsProcessor, RepetitionPenaltyLogitsProcessor, TypicalLogitsWarper

from kernels.backend import Backend
from kernels.load import load_backend
from model.contract import INVALID_TOKEN, LATE, Draw
from model.sampling.choice import choose as choose_on_device
from model.sampling.choice import read_choice
from model.sampling.memory import TokenMemory
from model.sampling.orders import BACKEND as BACKEND_STAGES
from model.sampling.orders import ORDERS, TRANSFORMED
from model.sampling.settings import settings_of
from model.sampling.transforms import (
    TRANSFORMS,
    Transform,
    allow_listed,
    allow_only,
    ban_early_stop,
    ban_words,
    keep_near_top,
    keep_typical,
    penalise_repetition,
    warm,
)
from model.sampling_params import FilterOrder, SamplingParams
from model.token_logprobs import TokenLogprobs
from tests.kernels.test_sampling import Probabilities, check_frequencies

VOCAB = 40
CPU = torch.device("cpu")
BACKEND = load_backend(CPU, "reference")
PLAIN = SamplingParams(max_tokens=100)
GREEDY = replace(PLAIN, temperature=0.0)

deterministic = settings(derandomize=True, deadline=None)
prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12)
token_lists = st.lists(st.integers(0, VOCAB - 1), max_size=12)


def choose(backend: Backend, logits: Tensor, draws: Sequence[Draw]) -> tuple[list[int], list[TokenLogprobs | None]]:
    placed = in_places(draws)
    settings = settings_of(placed, logits.device)
    batch = settings.batch(placed)
    return read_choice(
        choose_on_device(backend, logits, placed, TokenMemory(64, BACKEND, CPU), settings, batch), placed
    )


def in_places(draws: Sequence[Draw]) -> list[Draw]:
    """Each with a place of its own, as the scheduler gives them."""
    return [replace(draw, row=row) for row, draw in enumerate(draws)]


def transformed(logits: Tensor, draws: Sequence[Draw], transforms: Sequence[Transform] = TRANSFORMS) -> None:
    placed, memory = in_places(draws), TokenMemory(64, BACKEND, CPU)
    memory.begin(placed)
    for transform in transforms:
        transform(logits, placed, memory)


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
    return request(params, draw(prompts), draw(token_lists))


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
    transformed(logits, draws)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@deterministic
@given(st.lists(st.integers(0, VOCAB - 1), min_size=1), token_lists, numbers(0.5, 3))
def test_repetition_penalty_is_that_of_transformers(prompt: list[int], output: list[int], penalty: float) -> None:
    logits = random_logits(1)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), logits.clone())
    penalised = request(replace(PLAIN, repetition_penalty=penalty), prompt, output)
    transformed(logits, [penalised], [penalise_repetition])
    torch.testing.assert_close(logits, expected)


def test_rows_without_a_transform_are_not_touched() -> None:
    logits = random_logits(3)
    edited = logits.clone()
    biased = replace(PLAIN, logit_bias=((3, 1.0),), presence_penalty=1.0, repetition_penalty=2.0)
    draws = [request(PLAIN, [1], [2, 2]), request(biased, [1], [2]), request(PLAIN, [3], [])]
    transformed(edited, draws)
    assert torch.equal(edited[[0, 2]], logits[[0, 2]])
    assert not torch.equal(edited[1], logits[1])


def test_stop_tokens_are_banned_until_the_last_of_min_tokens() -> None:
    params = replace(GREEDY, min_tokens=2, stop_token_ids=(7,))
    logits = torch.zeros(3, VOCAB)
    transformed(logits, [request(params, [1], [0] * n) for n in range(3)], [ban_early_stop])
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


@deterministic
@given(st.lists(batches, min_size=1, max_size=4))
def test_settings_of_an_earlier_batch_are_kept_only_where_they_hold(steps: list[list[Draw]]) -> None:
    known = None
    for draws in steps:
        kept, fresh = settings_of(draws, CPU, known), settings_of(draws, CPU)
        for name in ("params", "transforms", "asking", "reads_output"):
            assert getattr(kept, name) == getattr(fresh, name)
        for name, column in fresh.columns.items():
            assert torch.equal(kept.columns[name], column)
        later = [replace(draw, index=draw.index + 1, fresh=False) for draw in draws]
        assert settings_of(later, CPU, kept) is kept
        assert kept.batch(later).counter.tolist() == [draw.index for draw in later]
        known = kept


@deterministic
@given(batches)
def test_draws_stand_alone_where_nothing_but_tokens_comes_of_their_logits(draws: list[Draw]) -> None:
    if settings_of(draws, CPU).draws_alone(draws):
        assert not any(transform.applies(draw) for draw in draws for transform in TRANSFORMS)
        assert all(draw.params.logprobs is None and draw.candidates is None for draw in draws)
    for params, changes, alone in [
        (GREEDY, {}, True),
        (replace(PLAIN, top_k=5, top_p=0.5, min_p=0.1), {}, True),
        (replace(GREEDY, logprobs=0), {}, False),
        (replace(GREEDY, repetition_penalty=1.1), {}, False),
        (GREEDY, {"allowed": bytes(-(-VOCAB // 8))}, False),
        (GREEDY, {"allowed": LATE}, False),
        (GREEDY, {"candidates": 3}, False),
    ]:
        asked = [request(GREEDY, [1], []), replace(request(params, [1], []), **changes)]
        assert settings_of(asked, CPU).draws_alone(asked) == alone


def test_no_draws_choose_nothing() -> None:
    assert choose(BACKEND, torch.zeros(0, VOCAB), []) == ([], [])


PENALISED = replace(PLAIN, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3)


@deterministic
@given(st.lists(st.tuples(prompts, token_lists, st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=6))
def test_tokens_added_on_the_device_count_as_if_they_had_been_told(
    requests: list[tuple[list[int], list[int], int, int]],
) -> None:
    """One after the other, in few places; all but the first `told` tokens of an output are only drawn."""
    memory = TokenMemory(64, BACKEND, CPU)
    for prompt, output, row, told in requests:
        told = min(told, len(output))
        draw = Draw(PENALISED, prompt, output[:told], told, row)
        memory.begin([draw])
        for index in range(told, len(output)):
            memory.add([replace(draw, index=index)], torch.tensor([output[index]]))
        drawn = replace(draw, index=len(output), fresh=False)
        kept, fresh = random_logits(1), random_logits(1)
        for transform in TRANSFORMS:
            transform(kept, [drawn], memory)
        transformed(fresh, [request(PENALISED, prompt, output)])
        assert torch.equal(kept, fresh)


def test_a_failed_draw_leaves_a_memory_that_can_be_read() -> None:
    memory = TokenMemory(64, BACKEND, CPU)
    draw = Draw(PENALISED, [1], [], 0)
    memory.begin([draw])
    memory.add([draw], torch.tensor([INVALID_TOKEN]))
    penalise_repetition(random_logits(1), [replace(draw, index=1, fresh=False)], memory)


@deterministic
@given(st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.99]), st.sampled_from([0.5, 1.0, 1.7]), st.integers(0, 99))
def test_typical_p_is_that_of_transformers_at_the_requests_temperature(
    mass: float, temperature: float, seed: int
) -> None:
    logits = random_logits(3, seed)
    expected = TypicalLogitsWarper(mass)(torch.zeros(1, 1), logits[1:2] / temperature)
    greedy = request(replace(GREEDY, typical_p=mass), [1], [])
    edited = logits.clone()
    typical = request(replace(PLAIN, typical_p=mass, temperature=temperature), [1], [])
    transformed(edited, [greedy, typical, request(PLAIN, [1], [])], [warm, keep_typical])
    assert torch.equal(edited[1].isinf(), expected[0].isinf())
    assert torch.equal(edited[[0, 2]], logits[[0, 2]])


def test_typical_p_survives_what_is_banned() -> None:
    logits = random_logits(1).index_fill(1, torch.arange(3, VOCAB), -math.inf)
    transformed(logits, [request(replace(PLAIN, typical_p=0.9), [1], [])], [keep_typical])
    assert 1 <= int(logits.isfinite().sum()) <= 3


@deterministic
@given(st.sets(st.integers(0, VOCAB - 1), min_size=1), st.integers(0, 99))
def test_only_what_is_allowed_is_drawn(allowed: set[int], seed: int) -> None:
    packed = bytearray(-(-VOCAB // 32) * 4)
    for token in allowed:
        packed[token // 8] |= 1 << token % 8
    free, bound = request(PLAIN, [1], []), replace(request(PLAIN, [1], []), allowed=bytes(packed))
    logits = random_logits(2, seed)
    edited = logits.clone()
    transformed(edited, [bound, free], [allow_only])
    assert {token for token in range(VOCAB) if edited[0, token].isfinite()} == allowed
    assert torch.equal(edited[1], logits[1])
    (first, _), _ = choose(BACKEND, logits, [bound, free])
    assert first in allowed


def test_a_mask_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        transformed(random_logits(1), [replace(request(PLAIN, [1], []), allowed=b"\xff")], [allow_only])


def test_the_masks_of_request_and_grammar_hold_together() -> None:
    own, grammars = (sum(1 << token for token in tokens).to_bytes(VOCAB // 8, "little") for tokens in ({3, 9}, {9, 20}))
    edited = random_logits(1)
    transformed(
        edited, [replace(request(replace(PLAIN, allowed=own), [1], []), allowed=grammars)], [allow_only, allow_listed]
    )
    assert edited[0].isfinite().nonzero().flatten().tolist() == [9]


words = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6)
few_tokens = st.lists(st.integers(0, 3), max_size=8)


@deterministic
@given(st.lists(st.tuples(words, few_tokens, st.integers(0, 8)), min_size=1, max_size=4))
def test_bad_words_are_those_of_transformers_in_the_output(
    requests: list[tuple[list[tuple[int, ...]], list[int], int]],
) -> None:
    """Also where the last tokens of an output are known to the device alone."""
    memory, draws = TokenMemory(64, BACKEND, CPU), []
    for row, (bad, output, told) in enumerate(requests):
        told = min(told, len(output))
        params = replace(PLAIN, bad_words=tuple(dict.fromkeys(bad)))
        draw = Draw(params, [0, 1, 2, 3], output[:told], told, row)
        memory.begin([draw])
        for index in range(told, len(output)):
            memory.add([replace(draw, index=index)], torch.tensor([output[index]]))
        draws.append(replace(draw, index=len(output), fresh=False))
    edited = random_logits(len(draws))
    expected = edited.clone()
    ban_words(edited, draws, memory)
    for row, (bad, output, _) in enumerate(requests):
        processor = NoBadWordsLogitsProcessor([[*word] for word in dict.fromkeys(bad)])
        ids = torch.tensor([output], dtype=torch.int64)
        expected[row : row + 1] = processor(ids, expected[row : row + 1])
    assert torch.equal(edited, expected)


@deterministic
@given(st.sampled_from([0.1, 0.5, 1.0, 3.0]), st.sampled_from([0.5, 1.0, 1.7]), st.integers(0, 20), st.integers(0, 99))
def test_top_n_sigma_is_its_definition_at_any_temperature(
    sigmas: float, temperature: float, banned: int, seed: int
) -> None:
    """Source: llama.cpp, where banned tokens count neither for the mean nor for the deviation."""
    logits = random_logits(3, seed)
    logits[1, :banned] = -math.inf
    finite = [float(x) for x in logits[1].double() if x.isfinite()]
    least = max(finite) - sigmas * statistics.pstdev(finite)
    draws = [
        request(replace(GREEDY, top_n_sigma=sigmas), [1], []),
        request(replace(PLAIN, top_n_sigma=sigmas, temperature=temperature), [1], []),
        request(PLAIN, [1], []),
    ]
    edited = logits.clone()
    transformed(edited, draws, [keep_near_top])
    assert [token for token in range(VOCAB) if edited[1, token].isfinite()] == [
        token for token in range(VOCAB) if logits[1, token] >= least
    ]
    assert torch.equal(edited[[0, 2]], logits[[0, 2]])


FilterStep = Callable[[dict[int, float], SamplingParams], dict[int, float]]
"""What a filter leaves of the tokens' logits, in plain Python."""


def plain_odds(logits: dict[int, float]) -> dict[int, float]:
    highest = max(logits.values())
    odds = {token: math.exp(logit - highest) for token, logit in logits.items()}
    return {token: odd / sum(odds.values()) for token, odd in odds.items()}


def until(ranked: Sequence[int], odds: dict[int, float], mass: float) -> list[int]:
    return [token for place, token in enumerate(ranked) if sum(odds[before] for before in ranked[:place]) < mass]


def plain_sigma(logits: dict[int, float], params: SamplingParams) -> dict[int, float]:
    sigmas = params.top_n_sigma or math.inf
    least = max(logits.values()) - sigmas * statistics.pstdev(logits.values())
    return {token: logit for token, logit in logits.items() if logit >= least}


def plain_temperature(logits: dict[int, float], params: SamplingParams) -> dict[int, float]:
    return {token: logit / params.temperature for token, logit in logits.items()}


def plain_top_k(logits: dict[int, float], params: SamplingParams) -> dict[int, float]:
    return {token: logits[token] for token in sorted(logits, key=lambda token: -logits[token])[: params.top_k]}


def plain_top_p(logits: dict[int, float], params: SamplingParams) -> dict[int, float]:
    ranked = sorted(logits, key=lambda token: -logits[token])
    return {token: logits[token] for token in until(ranked, plain_odds(logits), params.top_p)}


def plain_min_p(logits: dict[int, float], params: SamplingParams) -> dict[int, float]:
    odds = plain_odds(logits)
    return {token: logit for token, logit in logits.items() if odds[token] >= params.min_p * max(odds.values())}


def plain_typical(logits: dict[int, float], params: SamplingParams) -> dict[int, float]:
    odds = plain_odds(logits)
    entropy = -sum(odd * math.log(odd) for odd in odds.values())
    ranked = sorted(logits, key=lambda token: abs(-math.log(odds[token]) - entropy))
    return {token: logits[token] for token in until(ranked, odds, params.typical_p)}


STEPS: dict[FilterOrder, list[FilterStep]] = {
    "transformers": [plain_sigma, plain_temperature, plain_typical, plain_top_k, plain_top_p, plain_min_p],
    "vllm": [plain_sigma, plain_temperature, plain_typical, plain_min_p, plain_top_k, plain_top_p],
    "llama.cpp": [plain_sigma, plain_top_k, plain_typical, plain_top_p, plain_min_p, plain_temperature],
}


def in_plain_order(logits: Tensor, params: SamplingParams) -> Probabilities:
    left = dict(enumerate(logits.double().tolist()))
    for step in STEPS[params.filter_order]:
        left = step(left, params)
    found = np.zeros(VOCAB)
    for token, odd in plain_odds(left).items():
        found[token] = odd
    return found


FEW_FILTERS: list[dict[str, float]] = [
    {"top_k": 30, "top_p": 0.8, "min_p": 0.2},
    {"top_k": 9, "typical_p": 0.6},
    {"typical_p": 0.8, "min_p": 0.15},
    {"top_n_sigma": 1.5, "top_p": 0.9},
    {"top_n_sigma": 2, "top_k": 20, "typical_p": 0.95, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("filters", FEW_FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("order", STEPS)
def test_draws_follow_the_filters_in_their_order(
    order: FilterOrder, temperature: float, filters: dict[str, float], tied: bool
) -> None:
    params = settings_with({"filter_order": order, "temperature": temperature, "top_k": VOCAB, **filters})
    logits, count = random_logits(1) / 2, 600
    logits = logits.round() if tied else logits
    tokens, _ = choose(BACKEND, logits.repeat(count, 1), [Draw(params, [1], [], index) for index in range(count)])
    check_frequencies(torch.tensor(tokens), in_plain_order(logits[0], params))


def settings_with(values: Mapping[str, object]) -> SamplingParams:
    return replace(PLAIN, **values)


@pytest.mark.parametrize("order", STEPS)
def test_rows_of_one_batch_are_filtered_each_in_its_own_order(order: FilterOrder) -> None:
    other = [replace(PLAIN, filter_order=name, **filters, temperature=0.7) for name in STEPS for filters in FEW_FILTERS]
    mine = replace(PLAIN, filter_order=order, top_p=0.8, temperature=1.7, seed=3)
    logits = random_logits(1)
    [alone], _ = choose(BACKEND, logits.clone(), [request(mine, [1], [])])
    together, _ = choose(
        BACKEND, logits.repeat(len(other) + 1, 1), [request(params, [1], []) for params in [*other, mine]]
    )
    assert together[-1] == alone


def test_the_orders_differ_by_what_they_keep() -> None:
    logits = random_logits(1)[0] / 2

    def kept(order: FilterOrder) -> tuple[bytes, ...]:
        each = [settings_with({"filter_order": order, "temperature": 1.7, **filters}) for filters in FEW_FILTERS]
        return tuple(
            (in_plain_order(logits, replace(params, top_k=params.top_k or VOCAB)) > 0).tobytes() for params in each
        )

    assert len({kept(order) for order in STEPS}) == len(STEPS)


def test_the_stages_before_a_backends_draw_are_transforms_in_their_order() -> None:
    names = [transform.name for transform in TRANSFORMS]
    for order, stages in ORDERS.items():
        everything = settings_with({"filter_order": order, "temperature": 0.5, **FEW_FILTERS[-1]})
        ahead = [stage for stage in stages if TRANSFORMED[stage](everything)]
        assert ahead == [name for name in names if name in ahead]
        assert stages == (*ahead, *(stage for stage in BACKEND_STAGES if stage not in ahead))


@pytest.mark.parametrize("temperature", [0.0, 1e-5, 1.0])
@pytest.mark.parametrize("order", STEPS)
def test_high_logits_and_low_temperatures_overflow_in_no_order(order: FilterOrder, temperature: float) -> None:
    everything = settings_with({"filter_order": order, "temperature": temperature, **FEW_FILTERS[-1]})
    logits = random_logits(1) * 1e30
    tokens, _ = choose(BACKEND, logits.clone(), [request(everything, [1], [])])
    assert tokens == [int(logits.argmax())]
    nothing = torch.full_like(logits, -math.inf)
    assert choose(BACKEND, nothing, [request(everything, [1], [])])[0] == [INVALID_TOKEN]
