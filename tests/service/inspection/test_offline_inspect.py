"""Looks inside by the offline API: the arrays are the numbers of the server's own answers."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from headlight import LLM, Inspection, RequestError, SamplingParams
from tests.service.dummy_model import SETTINGS
from tests.service.servers import serving

TEXT = "Seoul ☀"
LAYERS = 3
EVERYTHING: dict[str, Any] = {"attention": [[0, 1], [2, 3]], "residual": True, "lens": 4, "distribution": 3}
DRAWING: dict[str, Any] = {"temperature": 0.5, "top_k": 5, "seed": 7, "max_tokens": 2}


@pytest.fixture(scope="module")
def llm(lent_engine: None, dummy_flags: tuple[str, ...]) -> Iterator[LLM]:
    with LLM(dummy_flags[1], **SETTINGS, max_inspection=65536) as llm:
        yield llm


@pytest.fixture(scope="module")
def url(dummy_flags: tuple[str, ...]) -> Iterator[str]:
    """A server of the same random weights."""
    with serving(*dummy_flags[1:]) as (url, _):
        yield url


def answered(url: str, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.post(f"{url}/v1/inspect", json=fields, timeout=60).raise_for_status().json()
    return answer


def near(array: Any, numbers: Any) -> bool:
    return np.array_equal(np.shape(array), np.shape(numbers)) and np.allclose(array, numbers, atol=1e-5)


def check(inspection: Inspection, answer: dict[str, Any]) -> None:
    """Hold every number of an inspection to those of an answer over HTTP."""
    assert [token.model_dump(exclude_unset=True, mode="json") for token in inspection.tokens] == answer["tokens"]
    assert inspection.positions.tolist() == answer["positions"]
    assert inspection.text == answer.get("text")
    assert [one.model_dump(exclude_unset=True, mode="json") for one in inspection.spellings or ()] == answer.get(
        "spellings", []
    )
    if inspection.attention is not None:
        told = answer["attention"]
        assert [list(head) for head in inspection.attention.heads or ()] == told.get("heads", [])
        assert (inspection.attention.layers or []) == told.get("layers", [])
        assert inspection.attention.weights.dtype == np.float32
        assert near(inspection.attention.weights, told["data"])
        assert (inspection.attention.keys is None) is ("keys" not in told)
        if inspection.attention.keys is not None:
            assert inspection.attention.keys.tolist() == told["keys"]
        elif "heads" in told:
            assert inspection.attention.weights.sum(axis=2) == pytest.approx(1)
    if inspection.embedding is not None:
        told = answer["embedding"]
        assert near(inspection.embedding.norms, told["norms"]["data"])
        for name, key in (("tokens", "id"), ("texts", "text"), ("cosines", "cosine")):
            assert getattr(inspection.embedding, name).tolist() == [
                [one[key] for one in row] for row in told["nearest"]
            ]
        assert (inspection.embedding.vectors is None) is ("vectors" not in told)
        if inspection.embedding.vectors is not None:
            assert near(inspection.embedding.vectors, told["vectors"]["data"])
    if inspection.position_encoding is not None:
        told = answer["position_encoding"]
        for rotation, rotary in zip(inspection.position_encoding.rotary or (), told.get("rotary", ()), strict=True):
            assert (rotation.layers, rotation.magnitude) == (rotary["layers"], rotary["magnitude"])
            assert near(rotation.frequencies, rotary["frequencies"])
            assert near(rotation.angles, rotary["angles"]["data"])
        assert inspection.position_encoding.learned is inspection.position_encoding.alibi_slopes is None
    if inspection.residual is not None:
        assert near(inspection.residual.stream, answer["residual"]["stream"]["data"])
        assert near(inspection.residual.added, answer["residual"]["added"]["data"])
    if inspection.lens is not None:
        lens = answer["lens"]
        likeliest = [[entry["likeliest"] for entry in row] for row in lens]
        for name, key in (("tokens", "id"), ("texts", "text")):
            assert getattr(inspection.lens, name).tolist() == [
                [[one[key] for one in e] for e in row] for row in likeliest
            ]
        assert near(
            inspection.lens.logprobs, [[[one["logprob"] for one in entry] for entry in row] for row in likeliest]
        )
        follows = [[entry["next_rank"] is not None for entry in row] for row in lens]
        assert np.isnan(inspection.lens.next_logprob).tolist() == [[not one for one in row] for row in follows]
        assert inspection.lens.next_rank.tolist() == [[entry["next_rank"] or 0 for entry in row] for row in lens]
    shown = answer.get("distributions") or []
    assert len(inspection.distributions or ()) == len(shown)
    for one, told in zip(inspection.distributions or (), shown, strict=True):
        assert (one.position, one.setting, one.drawn) == (told["position"], told["setting"], told["drawn"])
        for name, key in (("stages", "name"), ("kept", "kept"), ("mass", "mass"), ("entropy", "entropy")):
            found = [stage[key] for stage in told["stages"]]
            assert getattr(one, name) == found if key == "name" else near(getattr(one, name), found)
        candidates = told["candidates"]
        assert one.tokens.tolist() == [candidate["id"] for candidate in candidates]
        assert one.texts.tolist() == [candidate["text"] for candidate in candidates]
        assert near(one.probabilities, [candidate["probabilities"] for candidate in candidates])
        noise = [np.nan if candidate["noise"] is None else candidate["noise"] for candidate in candidates]
        assert np.allclose(one.noise, noise, equal_nan=True)


@pytest.mark.parametrize(
    "fields",
    [
        EVERYTHING | DRAWING,
        {"attention": "all", "positions": [1, 3]},
        {"residual": True},
        {"attention": "all", "reduction": "mean"},
        {"attention": "all", "reduction": "rollout", "top_keys": 2},
        {"embedding": 3, "embedding_vectors": True, "position_encoding": True, "details": True},
        {"lens": 0},
        {"distribution": 2, "positions": [2], "settings": [{"temperature": 1}, {"top_p": 0.5, "temperature": 1}]},
        {},
    ],
    ids=["everything", "all heads", "norms", "mean", "rollout", "inputs", "lens of no tokens", "settings", "tokens"],
)
def test_arrays_are_the_numbers_of_the_http_answer(llm: LLM, url: str, fields: dict[str, Any]) -> None:
    answer = answered(url, prompt=TEXT, **fields)
    check(llm.inspect(TEXT, **fields), answer)
    check(llm.inspect([token["id"] for token in answer["tokens"] if not token["generated"]], **fields), answer)


def test_views_that_were_not_asked_for_are_none(llm: LLM) -> None:
    inspection = llm.inspect(TEXT, lens=2)
    assert (inspection.attention, inspection.residual, inspection.distributions) == (None, None, None)
    assert inspection.lens is not None
    assert inspection.lens.tokens.shape == (LAYERS + 1, len(inspection.tokens), 2)


def test_a_conversation_is_written_by_the_template(llm: LLM, url: str) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    check(llm.inspect(messages, residual=True), answered(url, messages=messages, residual=True))


def test_the_inside_comes_beside_generated_tokens(llm: LLM) -> None:
    """It is what `inspect` shows at the same positions."""
    params = SamplingParams(temperature=0.5, top_k=5, seed=7, max_tokens=3, ignore_eos=True)
    for [result] in (
        llm.generate(TEXT, params, inspect=EVERYTHING),
        llm.chat([{"role": "user", "content": TEXT}], params, inspect=EVERYTHING),
    ):
        [output] = result.outputs
        assert output.inspection is not None
        assert [one.token for one in output.inspection] == output.token_ids
        whole = llm.inspect([*result.prompt_token_ids, *output.token_ids], attention=EVERYTHING["attention"], lens=4)
        assert whole.attention is not None
        assert whole.lens is not None
        for place, one in enumerate(output.inspection, len(result.prompt_token_ids) - 1):
            assert one.position == place
            assert one.attention is not None
            assert near(one.attention.weights, whole.attention.weights[:, place, : place + 1])
            assert one.lens is not None
            assert near(one.lens.logprobs, whole.lens.logprobs[:, place])
            assert one.lens.next_rank.tolist() == whole.lens.next_rank[:, place].tolist()
            assert one.residual is not None
            assert one.residual.stream.shape == (2 * LAYERS + 1,)
            assert one.distribution is not None
            assert one.distribution.stages == ["raw", "temperature", "top_k"]
            assert one.distribution.drawn == one.token
    [plain] = llm.generate(TEXT, params)
    assert plain.outputs[0].inspection is None


def test_half_precision_is_what_it_is_asked_for(llm: LLM) -> None:
    inspection, halves = (llm.inspect(TEXT, residual=True, encoding_format=form) for form in ("float", "base64"))
    assert inspection.residual is not None
    assert halves.residual is not None
    assert halves.residual.stream.dtype == np.float16
    assert np.allclose(halves.residual.stream, inspection.residual.stream, rtol=1e-3)


@pytest.mark.parametrize(
    ("prompt", "fields", "words"),
    [
        ("", {}, "prompt: has no tokens"),
        ([], {}, "tokens: has no tokens"),
        ([1000], {}, "tokens: has a token id outside"),
        ([1], {"tokens": [2]}, "tokens: does not go with the offline API"),
        ([1], {"messages": [{"role": "user", "content": "a"}]}, "tokens: stand in place"),
        ("a", {"stream": True}, "stream: does not go"),
        ("a", {"attention": [(3, 0)]}, "attention: has a head beyond the model's 3 layers"),
        ("a", {"attention": "3.5"}, "attention"),
        ("a" * 60, {"attention": "all"}, "attention: would be .* bytes, more than the 65536"),
        ("a", {"lens": 21}, "lens: 21 tokens are more than the 20"),
        ("a", {"nonsense": 1}, "nonsense: unknown field"),
    ],
)
def test_the_limits_are_the_servers(llm: LLM, prompt: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        llm.inspect(prompt, **fields)
    assert caught.value.param is not None
