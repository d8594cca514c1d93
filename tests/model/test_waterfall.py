"""The stages of a draw end in the distribution that the sampler draws from, and each is the sampler's own."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.load import load_backend
from model.contract import Draw, Wanted
from model.inspection import Distribution, InspectionRequest
from model.sampling import waterfall
from model.sampling.choice import Choice, choose
from model.sampling.memory import TokenMemory
from model.sampling.orders import ORDERS
from model.sampling.settings import settings_of
from model.sampling_params import FilterOrder, SamplingParams
from service.engine.messages import EngineRequest, Submit
from tests.kernels.test_sampling import Filters, check_frequencies, textbook
from tests.model.test_extras import CPU, GREEDY, PROMPT, Engine
from tests.tiny import random_tokens

VOCAB = 40
BACKEND = load_backend(CPU, "reference")
PLAIN = SamplingParams(max_tokens=100)
EVERY = replace(
    PLAIN,
    temperature=0.8,
    top_k=20,
    top_p=0.9,
    min_p=0.02,
    typical_p=0.95,
    repetition_penalty=1.3,
    presence_penalty=0.2,
    logit_bias=((3, 2.0),),
    min_tokens=9,
    stop_token_ids=(5,),
    seed=4,
)
MASK = bytes([0b11111110, 255, 255, 255, 255])


def random_logits(rows: int) -> Tensor:
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1)).repeat(rows, 1) * 2


def shown(logits: Tensor, draws: Sequence[Draw]) -> list[Distribution]:
    placed = [replace(draw, row=row) for row, draw in enumerate(draws)]
    return [*chosen(logits, placed).distributions().values()]


def chosen(logits: Tensor, draws: Sequence[Draw]) -> Choice:
    settings = settings_of(draws, CPU)
    return choose(BACKEND, logits, draws, TokenMemory(64, BACKEND, CPU), settings, settings.batch(draws))


@pytest.mark.parametrize(
    ("order", "filters"),
    [
        ("transformers", "temperature typical_p top_k top_p min_p"),
        ("vllm", "temperature typical_p min_p top_k top_p"),
        ("llama.cpp", "top_k typical_p top_p min_p temperature"),
    ],
)
def test_every_stage_is_told_in_the_order_of_the_sampler(order: FilterOrder, filters: str) -> None:
    params = replace(EVERY, filter_order=order)
    draw = Draw(params, [1, 2], [2, 7], 2, allowed=MASK, candidates=VOCAB)
    # Beside draws with other orders, whose stages are computed with it.
    others = [replace(draw, params=replace(EVERY, filter_order=name)) for name in ORDERS]
    found, *_ = shown(random_logits(len(others) + 1), [draw, *others])
    names = f"raw bias repetition_penalty frequency_penalty min_tokens grammar {filters}"
    assert [stage.name for stage in found.stages] == names.split()
    assert found.position == 3
    stages = [torch.tensor(column, dtype=torch.float64) for column in zip(*found.probabilities, strict=True)]
    assert len(found.candidates) == VOCAB
    for stage, column in zip(found.stages, stages, strict=True):
        assert column.sum().item() == pytest.approx(1, abs=1e-6)
        assert stage.kept == int((column > 0).sum())
        assert stage.entropy == pytest.approx(torch.special.entr(column).sum().item(), abs=1e-5)
    for (before, now), stage in zip(pairwise(stages), found.stages[1:], strict=True):
        assert stage.mass == pytest.approx(before[now > 0].sum().item(), abs=1e-6)
    assert {stage.name for stage in found.stages if stage.mass < 0.999999} >= {"grammar", "typical_p", "top_p"}
    assert found.probabilities[found.candidates.index(0)][5] == 0
    assert found.probabilities[found.candidates.index(5)][4] == 0


def test_stages_that_a_draw_does_not_ask_for_are_left_out() -> None:
    draws = [
        Draw(PLAIN, [1], [], 0, candidates=2),
        Draw(EVERY, [1], [], 0),
        Draw(replace(PLAIN, temperature=0, top_k=5), [1], [], 0, candidates=3),
        Draw(replace(PLAIN, top_p=0.5), [1], [], 0, candidates=VOCAB + 1),
    ]
    logits = random_logits(4)
    found = shown(logits, draws)
    assert [[stage.name for stage in one.stages] for one in found] == [
        ["raw"],
        ["raw", "temperature"],
        ["raw", "top_p"],
    ]
    likeliest = int(random_logits(1).argmax())
    assert found[1].drawn == found[1].candidates[0] == likeliest
    assert (found[1].stages[1].kept, found[1].stages[1].entropy, found[1].noise) == (1, 0, None)
    assert len(found[0].candidates) in (2, 3)
    assert len(found[1].candidates) == 3
    assert found[1].stages[1].mass == pytest.approx(random_logits(1).softmax(-1).max().item())


@pytest.mark.parametrize(
    "filters",
    [
        Filters(),
        Filters(temperature=0.5, top_k=7),
        Filters(top_p=0.7),
        Filters(temperature=1.5, top_k=30, top_p=0.9, min_p=0.05),
    ],
)
def test_the_last_stage_is_what_the_sampler_draws_from(filters: Filters) -> None:
    """By frequencies, by the definition, and by the noise of each draw."""
    count = 4000
    params = replace(
        PLAIN, temperature=filters.temperature, top_k=filters.top_k, top_p=filters.top_p, min_p=filters.min_p, seed=3
    )
    draws = [Draw(params, [1], [], index, candidates=VOCAB) for index in range(count)]
    found = shown(random_logits(count), draws)
    last = torch.zeros(VOCAB, dtype=torch.float64)
    last[[*found[0].candidates]] = torch.tensor([row[-1] for row in found[0].probabilities], dtype=torch.float64)
    check_frequencies(torch.tensor([one.drawn for one in found]), last.numpy())
    expected = textbook(random_logits(1)[0], filters)
    torch.testing.assert_close(last, torch.as_tensor(expected), atol=1e-6, rtol=1e-5)
    for one in found:
        assert one.noise is not None
        times = [noise / row[-1] for noise, row in zip(one.noise, one.probabilities, strict=True) if row[-1] > 0]
        kept = [token for token, row in zip(one.candidates, one.probabilities, strict=True) if row[-1] > 0]
        assert kept[times.index(min(times))] == one.drawn


def test_who_asks_draws_the_same_and_so_do_the_others() -> None:
    draws = [Draw(replace(EVERY, seed=seed), [1, 2], [2], 1) for seed in range(20)]
    asking = [replace(draw, candidates=3 if draw.params.seed % 2 else None) for draw in draws]
    placed = [[replace(draw, row=row) for row, draw in enumerate(group)] for group in (draws, asking)]
    plain, watched = (chosen(random_logits(20), group) for group in placed)
    assert torch.equal(plain.tokens, watched.tokens)
    assert list(watched.distributions()) == [*range(1, 20, 2)]
    assert plain.waterfall is None


def test_nobody_pays_who_does_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waterfall.Waterfall, "__init__", lambda *_: pytest.fail("watched"))
    draws = [Draw(EVERY, [1], [], 0)]
    chosen(random_logits(1), draws)


@pytest.mark.parametrize("budget", [8, 64])
def test_a_request_shows_the_distributions_that_it_draws_from(budget: int, tmp_path: Path) -> None:
    """They are of the model's own logits, whether the prompt is cut or cached, and the same beside others."""
    engine = Engine("llama", tmp_path, token_budget=budget)
    params = SamplingParams(max_tokens=6, temperature=0.7, top_k=20, seed=3, presence_penalty=0.5, logprobs=2)
    wanted = Wanted(inspect=InspectionRequest(generated=True, distribution=4))
    company = (random_tokens(9, seed=1), params, Wanted())
    plain = engine.run((PROMPT, params, Wanted()))[0]
    found, _ = engine.run((PROMPT, params, wanted), company)
    assert found.tokens == plain.tokens
    assert [one.drawn for one in found.distributions] == found.tokens
    assert [one.position for one in found.distributions] == [*range(len(PROMPT) - 1, len(PROMPT) + 5)]
    text = [*PROMPT, *found.tokens]
    logits = engine.model(torch.tensor([text])).logits[0]
    for one in found.distributions:
        raw = logits[one.position].softmax(-1)[[*one.candidates]]
        torch.testing.assert_close(torch.tensor([row[0] for row in one.probabilities]), raw, atol=1e-5, rtol=1e-4)
        assert one.stages[-1].kept == 20
    assert found.inspections == []


def test_settings_are_tried_at_positions_of_a_prompt(tmp_path: Path) -> None:
    """A trial shows what a request with a prompt up to there and these settings draws first."""
    engine = Engine("llama", tmp_path, token_budget=8)
    trials = [replace(PLAIN, seed=2), replace(EVERY, min_tokens=0), replace(PLAIN, temperature=0)]
    asked = InspectionRequest(positions=[3, 11, 20], settings=trials, distribution=2)
    found, _ = engine.run((PROMPT, GREEDY, Wanted(inspect=asked)), (random_tokens(9, seed=1), PLAIN_SHORT, Wanted()))
    assert [one.position for one in found.distributions] == [3, 3, 3, 11, 11, 11, 20, 20, 20]
    for one, params in zip(found.distributions, trials * 3, strict=True):
        wanted = Wanted(inspect=InspectionRequest(generated=True, distribution=2))
        drawing = replace(params, max_tokens=1)
        (drawn,) = engine.run((PROMPT[: one.position + 1], drawing, wanted))
        assert one.drawn == drawn.tokens[0]
        assert one.candidates == drawn.distributions[0].candidates
        for mine, theirs in zip(one.stages, drawn.distributions[0].stages, strict=True):
            assert (mine.name, mine.kept) == (theirs.name, theirs.kept)
            assert mine.entropy == pytest.approx(theirs.entropy, abs=1e-4)
            assert mine.entropy <= log(engine.spec.vocab_size) + 1e-6


def test_a_prompt_that_is_tried_again_is_found(tmp_path: Path) -> None:
    """The tried position itself is computed again, and shows the same."""
    engine = Engine("llama", tmp_path, token_budget=64)
    wanted = Wanted(inspect=InspectionRequest(positions=[20], settings=[PLAIN], distribution=2))
    first, again = (engine.run((PROMPT, GREEDY, wanted))[0] for _ in range(2))
    assert first.last is not None
    assert again.last is not None
    assert (first.last.cached_tokens, again.last.cached_tokens) == (0, 20)
    assert first.distributions[0].candidates == again.distributions[0].candidates
    np.testing.assert_allclose(first.distributions[0].probabilities, again.distributions[0].probabilities, atol=1e-5)


def test_a_trial_of_what_is_no_number_ends_with_an_error(tmp_path: Path) -> None:
    engine = Engine("llama", tmp_path, token_budget=64)
    engine.decoder.weights.output.weight.fill_(float("nan"))
    wanted = Wanted(inspect=InspectionRequest(positions=[20], settings=[PLAIN], distribution=2))
    engine.core.submit(Submit(1, EngineRequest(PROMPT, GREEDY, wanted=wanted)))
    deltas = [delta for report in iter(engine.core.step, None) for delta in report.deltas]
    assert [delta.finish_reason for delta in deltas] == ["error"]


PLAIN_SHORT = replace(PLAIN, max_tokens=8)
