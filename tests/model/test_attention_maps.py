"""Attention reduced over heads and to the heaviest keys is what the same would be of transformers' weights."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from model import attention_maps
from model.contract import Wanted
from model.sampling_params import SamplingParams
from service.api.attention import Attention, heaviest, joined, rollout
from tests.model.test_extras import GREEDY, PROMPT, Engine, by_transformers
from tests.tiny import TINY_MODELS, random_tokens

COMPANY = (random_tokens(9, seed=1), SamplingParams(max_tokens=8), Wanted())


def maps_of(engine: Engine, **fields: object) -> Wanted:
    asked = engine.everything(range(len(PROMPT))).inspect
    assert asked is not None
    return Wanted(inspect=replace(asked, stream=False, lens=None, **fields))  # type: ignore[arg-type]


def by_layer(engine: Engine) -> torch.Tensor:
    """[layers, heads, tokens, tokens] by transformers."""
    maps = by_transformers(engine.model, PROMPT).maps
    return maps.view(len(engine.spec.layers), engine.spec.heads, *maps.shape[1:])


@pytest.mark.parametrize("family", TINY_MODELS)
def test_attention_is_reduced_as_it_would_be_of_transformers_weights(family: str, tmp_path: Path) -> None:
    engine = Engine(family, tmp_path, token_budget=8)
    expected = by_layer(engine)
    reductions: dict[Literal["mean", "max"], torch.Tensor] = {"mean": expected.mean(1), "max": expected.amax(1)}
    for reduction, maps in reductions.items():
        found, _ = engine.run((PROMPT, GREEDY, maps_of(engine, reduction=reduction)), COMPANY)
        seen = joined(found.inspections).weights
        np.testing.assert_allclose(seen, maps.numpy(), atol=1e-5)
        if reduction == "mean":
            np.testing.assert_allclose(seen.sum(-1), 1, atol=1e-5)
    found, _ = engine.run((PROMPT, GREEDY, maps_of(engine, top_keys=5)), COMPANY)
    check_heaviest(joined(found.inspections), expected.flatten(0, 1))


def check_heaviest(attention: Attention, expected: torch.Tensor) -> None:
    """That five keys of each row are the heaviest of the `expected` maps [maps, positions, keys]."""
    assert attention.keys is not None
    np.testing.assert_allclose(attention.weights, expected.topk(5).values.numpy(), atol=1e-5)
    real = attention.keys >= 0
    named = np.take_along_axis(expected.numpy(), np.maximum(attention.keys, 0), axis=-1)
    np.testing.assert_allclose(named[real], attention.weights[real], atol=1e-5)
    assert (attention.weights[~real] == 0).all()
    # Position p sees p + 1 keys, or fewer within a window.
    assert (real.sum(-1) <= np.minimum(np.arange(len(PROMPT)) + 1, 5)).all()
    assert all(len({*row[row >= 0]}) == (row >= 0).sum() for row in attention.keys.reshape(-1, 5))


def test_a_reduction_of_some_heads_and_its_heaviest_keys(tmp_path: Path) -> None:
    engine = Engine("llama", tmp_path, token_budget=8)
    expected = by_layer(engine)
    heads = [(2, 1), (0, 3), (2, 0)]
    wanted = maps_of(engine, heads=heads, reduction="max", top_keys=2)
    (found,) = engine.run((PROMPT, GREEDY, wanted))
    maps = torch.stack([expected[2, :2].amax(0), expected[0, 3]])
    np.testing.assert_allclose(joined(found.inspections).weights, maps.topk(2).values.numpy(), atol=1e-5)


def test_more_keys_than_there_are(tmp_path: Path) -> None:
    engine = Engine("llama", tmp_path, token_budget=8)
    (found,) = engine.run((PROMPT, GREEDY, maps_of(engine, heads=[(1, 2)], top_keys=30)))
    attention = joined(found.inspections)
    assert attention.keys is not None
    assert attention.weights.shape == attention.keys.shape == (1, len(PROMPT), 30)
    assert (attention.keys >= 0).sum(-1)[0].tolist() == [*range(1, len(PROMPT) + 1)]


def test_generated_positions_are_reduced_as_well(tmp_path: Path) -> None:
    engine = Engine("llama", tmp_path, token_budget=8)
    params = SamplingParams(max_tokens=4, temperature=0)
    wanted = maps_of(engine, reduction="mean", generated=True)
    (found,) = engine.run((PROMPT, params, wanted))
    text = [*PROMPT, *found.tokens[:-1]]
    expected = by_transformers(engine.model, text).maps.view(3, 4, len(text), len(text)).mean(1)
    np.testing.assert_allclose(joined(found.inspections).weights, expected.numpy(), atol=1e-5)


def test_weights_that_are_computed_in_slices_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine("llama", tmp_path, token_budget=64)
    asked: list[dict[str, object]] = [{}, {"top_keys": 3}, {"reduction": "mean"}]
    whole = [engine.run((PROMPT, GREEDY, maps_of(engine, **fields)))[0] for fields in asked]
    monkeypatch.setattr(attention_maps, "SLICE_BYTES", 4000)
    for fields, found in zip(asked, whole, strict=True):
        (sliced,) = engine.run((PROMPT, GREEDY, maps_of(engine, **fields)))
        for got, expected in zip(joined(sliced.inspections), joined(found.inspections), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-6) if got is not None else None


def test_rollout_is_the_product_of_mean_attention_and_identity(tmp_path: Path) -> None:
    engine = Engine("llama", tmp_path, token_budget=8)
    found, _ = engine.run((PROMPT, GREEDY, maps_of(engine, reduction="mean")), COMPANY)
    flows = rollout(joined(found.inspections).weights)
    expected = torch.eye(len(PROMPT))
    for flow, mean in zip(flows, by_layer(engine).mean(1), strict=True):
        expected = (0.5 * mean + 0.5 * torch.eye(len(PROMPT))) @ expected
        np.testing.assert_allclose(flow, expected.numpy(), atol=1e-5)
        np.testing.assert_allclose(flow.sum(-1), 1, atol=1e-5)


def test_both_sides_find_the_same_heaviest_keys() -> None:
    weights = torch.rand(2, 5, 9).tril()
    for top in (1, 4, 12):
        ours, theirs = heaviest(weights.numpy(), top), attention_maps.heaviest(weights, top)
        assert ours.keys is not None
        assert theirs.keys is not None
        np.testing.assert_array_equal(ours.weights, theirs.weights.numpy())
        np.testing.assert_array_equal(ours.keys, theirs.keys.numpy())
