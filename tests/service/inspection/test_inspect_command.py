"""headlight inspect: what it draws and writes is what the API says, and what it is refused for is one line."""

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headlight import LLM
from service import cli
from service.api.schemas.inspect import InspectBody
from service.inspection.npz import arrays_of
from tests.service.dummy_model import SETTINGS
from tests.service.test_cli import failure

pytestmark = pytest.mark.usefixtures("lent_engine")

ASKED = (
    "--attention",
    "0.1,2.3",
    "--lens",
    "--residual",
    "--embedding",
    "--distribution",
    "--top",
    "3",
    "--temperature",
    "0.5",
)
DRAWN = ("--top-k", "9", "--seed", "7")


@pytest.fixture(scope="module")
def flags(dummy_flags: tuple[str, ...]) -> tuple[str, ...]:
    return dummy_flags


@pytest.fixture(scope="module")
def llm(lent_engine: None, flags: tuple[str, ...]) -> Iterator[LLM]:
    with LLM(flags[1], **SETTINGS) as llm:
        yield llm


def run(*arguments: str) -> None:
    assert cli.main(("inspect", *arguments)) == 0


def test_the_arrays_of_the_file_are_those_of_the_api(
    llm: LLM, flags: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a file"
    run("서울!", *ASKED, *DRAWN, "--npz", str(file), *flags)
    assert capfd.readouterr().out == ""
    draw = {"temperature": 0.5, "top_k": 9, "seed": 7, "max_tokens": 1}
    looks = {"lens": 3, "residual": True, "embedding": 3, "embedding_vectors": True, "distribution": 3}
    inspection = llm.inspect("서울!", attention=[(0, 1), (2, 3)], **looks, **draw)
    expected = arrays_of(inspection)
    with np.load(file) as found:
        assert set(found) == set(expected)
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            if array.dtype.kind == "f":
                assert np.allclose(found[name], array, atol=1e-5, equal_nan=True), name
            else:
                assert np.array_equal(found[name], array), name
    assert expected["heads"].tolist() == [[0, 1], [2, 3]]
    assert expected["distribution_0_stages"].tolist() == ["raw", "temperature", "top_k"]


SETTINGS_ASKED = [{"temperature": 1, "top_k": 3}, {"repetition_penalty": 1.5}]
FURTHER = {"attention": "all", "reduction": "mean", "top_keys": 2, "positions": [0, 2, 3, 4]}
FURTHER |= {"position_encoding": True, "details": True, "spellings": True, "lens": 5, "distribution": 5}
FURTHER_FLAGS = ("--attention", "all", "--reduction", "mean", "--top-keys", "2", "--positions", "0,2-4")
FURTHER_FLAGS += ("--position-encoding", "--details", "--spellings", "--lens", "--distribution")
FURTHER_FLAGS += ("--fields", json.dumps({"settings": SETTINGS_ASKED, "typical_p": 0.9}))


def test_every_other_view_is_that_of_the_api_too(llm: LLM, flags: tuple[str, ...], tmp_path: Path) -> None:
    """Positions alone, reduced attention, encodings, details, spellings, ways to draw, and fields that are no flags."""
    run("Hi 서울!", *FURTHER_FLAGS, "--npz", str(tmp_path / "file"), *flags)
    expected = arrays_of(llm.inspect("Hi 서울!", settings=SETTINGS_ASKED, typical_p=0.9, **FURTHER))
    with np.load(tmp_path / "file") as found:
        assert set(found) == set(expected)
        for name, array in expected.items():
            near = array.dtype.kind == "f"
            assert (
                np.allclose(found[name], array, atol=1e-5, equal_nan=True)
                if near
                else np.array_equal(found[name], array)
            ), name
    assert expected["positions"].tolist() == [0, 2, 3, 4]
    assert expected["attention"].shape == expected["keys"].shape == (3, 4, 2)
    assert bytes(expected["bytes"]).decode() == "Hi 서울!"
    assert [int(expected[f"distribution_{index}_setting"]) for index in range(8)] == [0, 1] * 4
    assert "typical_p" in expected["distribution_0_stages"]


def test_every_field_of_the_api_can_be_given(flags: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    """What has no flag comes by --fields; what has one cannot come by both."""
    for name in InspectBody.model_fields.keys() - {"prompt"}:
        said = failure(capfd, "inspect", "a", "--fields", json.dumps({name: {"no": "such value"}}), *flags)
        assert name in said
        assert "twice" not in said
    said = failure(capfd, "inspect", "a", "--seed", "1", "--fields", '{"seed": 2, "prompt": "b"}', *flags)
    assert "fields: prompt, seed cannot be given twice" in said


def test_every_array_is_documented(llm: LLM) -> None:
    look = {"embedding": 1, "position_encoding": True, "top_keys": 1, "details": True, "spellings": True}
    arrays = arrays_of(llm.inspect("a", attention="all", lens=1, residual=True, distribution=1, max_tokens=1, **look))
    assert {"keys", "rotary_0_angles", "embedding_cosines", "byte_counts", "spelling_0_tokens"} <= set(arrays)
    first = {re.sub(r"_\d+_", "_0_", name) for name in arrays}
    assert set(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)*\b", arrays_of.__doc__ or "")) >= first


def test_it_draws_what_was_asked_for(flags: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    run("서울!", *ASKED, *flags)
    out = capfd.readouterr().out
    titles = ["8 tokens", "embedding: ", "attention of layer 0, head 1", "attention of layer 2, head 3", "logit lens"]
    titles += ["norms of the residual stream at position 6", "distribution after position 6"]
    assert [out.find(title) for title in titles] == sorted(out.find(title) for title in titles)
    assert -1 not in [out.find(title) for title in titles]
    assert "\x1b" not in out


def test_it_draws_every_other_view(flags: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    run("Hi 서울!", *FURTHER_FLAGS, *flags)
    out = capfd.readouterr().out
    titles = ["10 tokens", "bytes of each token", "the text in other spellings", "rotary angles in degrees"]
    titles += [f"attention of layer {layer}, its heads reduced: what each token looks at most" for layer in range(3)]
    titles += ["logit lens", "under setting 0", "under setting 1"]
    assert [out.find(title) for title in titles] == sorted(out.find(title) for title in titles)
    assert -1 not in [out.find(title) for title in titles]


def test_messages_are_written_by_the_template(
    llm: LLM, flags: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run("hi", "--system", "Be brief.", "--npz", str(tmp_path / "file"), *flags)
    inspection = llm.inspect([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}])
    with np.load(tmp_path / "file") as found:
        assert found["tokens"].tolist() == [token.id for token in inspection.tokens]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("",), "prompt: has no tokens"),
        (("a", "--attention", "3-5"), "attention: '3-5' is not LAYER.HEAD"),
        (("a", "--attention", ""), "attention: '' is not LAYER.HEAD"),
        (("a", "--attention", "3.5,"), "is not LAYER.HEAD"),
        (("a", "--attention", "3.0"), "attention: has a head beyond the model's 3 layers of 4 heads"),
        (("a", "--positions", "0-"), "positions: '0-' are not numbers or ranges"),
        (("a", "--positions", "0,3-2"), "positions: '0,3-2' has a range that ends before it begins"),
        (("a", "--reduction", "sum"), "reduction: should be"),
        (("a", "--fields", "{"), "fields: not JSON"),
        (("a", "--fields", "[]"), "fields: not a JSON object"),
        (("a", "--fields", '{"no_such": 1}'), "no_such"),
        (("a", "--lens", "--top", "x"), "lens: should be an integer"),
        (("a", "--distribution", "--temperature", "9"), "temperature: should be"),
        (("a" * 40, "--attention", "all", "--max-inspection", "4096"), "attention: would be "),
        (("\udcff",), "surrogate"),
        (("a", "--npz", "/dev/null/file"), "/dev/null/file: Not a directory"),
    ],
)
def test_what_it_is_refused_for(
    arguments: tuple[str, ...], words: str, flags: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert words in failure(capfd, "inspect", *arguments, *flags)


def test_a_terminal_that_cannot_show_it_says_so(
    flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    said = failure(capfd, "inspect", "a", "--attention", "0.0", *flags)
    assert said == "headlight: the terminal's encoding is ascii, which this text does not fit"
