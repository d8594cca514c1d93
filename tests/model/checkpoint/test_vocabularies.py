"""Two vocabularies are the same where every id that both have is the same token."""

import json
from typing import Any

import pytest

from model.checkpoint.errors import CheckpointError
from model.checkpoint.tokenizer_data import GgufTokenizer, HuggingFaceTokenizer, TokenizerData
from model.checkpoint.vocabularies import first_difference

WORDS = ["a", "b", "Ġa", "<end>"]


def gguf(words: object) -> GgufTokenizer:
    return GgufTokenizer({"tokenizer.ggml.tokens": words})


def folder(**file: Any) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(json.dumps(file).encode(), {}, None, ())


BPE = folder(model={"vocab": {"Ġa": 2, "a": 0, "b": 1}}, added_tokens=[{"id": 3, "content": "<end>", "special": True}])
UNIGRAM = folder(model={"vocab": [["a", -1.0], ["b", -2.0], ["Ġa", -3.0], ["<end>", 0.0]]})
LONGER = gguf([*WORDS, "[PAD4]"])


@pytest.mark.parametrize("one", [gguf(WORDS), BPE, UNIGRAM, LONGER], ids=["gguf", "bpe", "unigram", "longer"])
@pytest.mark.parametrize("other", [gguf(WORDS), BPE, UNIGRAM, LONGER], ids=["gguf", "bpe", "unigram", "longer"])
def test_the_same_tokens_in_any_form(one: TokenizerData, other: TokenizerData) -> None:
    assert first_difference(one, other) is None


@pytest.mark.parametrize("one", [gguf(WORDS), BPE, UNIGRAM, LONGER], ids=["gguf", "bpe", "unigram", "longer"])
@pytest.mark.parametrize(
    ("words", "told"),
    [(["a", "c", "Ġa"], ["1", "'c'", "'b'"]), (["a", "b", "Ġa", "x\n"], ["3", "'x\\n'"]), ([], ["no"])],
)
def test_the_first_difference_is_told(one: TokenizerData, words: list[str], told: list[str]) -> None:
    found = first_difference(gguf(words), one)
    assert found is not None
    assert all(part in found for part in told), found
    assert "\n" not in found


@pytest.mark.parametrize(
    "broken",
    [
        gguf(None),
        GgufTokenizer({}),
        HuggingFaceTokenizer(b"{", {}, None, ()),
        folder(model=[]),
        folder(model={"vocab": 3}),
        folder(model={"vocab": {}}, added_tokens=[7]),
    ],
)
def test_what_cannot_be_read_is_one_line(broken: TokenizerData) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        first_difference(broken, gguf(WORDS))
