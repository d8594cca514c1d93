"""The places of tokens are those of their characters, in every kind of vocabulary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint.tokenizer_data import HuggingFaceTokenizer
from service.text.respelling import respellings
from service.text.spans import place_tokens
from service.text.tokenizer import VocabularyTokenizer, load_tokenizer
from tests.service.api.fakes import EOS, FakeTokenizer
from tests.service.text.test_tokenizer import gpt2, llama2, llama3
from tests.service.text.training import deterministic

KINDS = {"gpt2": gpt2(), "llama3": llama3(), "llama2": llama2(True), "llama2-new": llama2(False)}
TEXTS = ["", "Hello, world", " two  spaces ", "naïve 한국어 🧑‍🚀 e\u0301", "a</s>b", "日本語のテキスト\n\n"]


def tokenizer_of(data: HuggingFaceTokenizer) -> VocabularyTokenizer:
    return load_tokenizer(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_each_token_is_where_its_bytes_are(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(KINDS[kind])
    tokens = tokenizer.encode(text, add_special_tokens=True, parse_special=True)
    placed = place_tokens(tokenizer, tokens)
    assert placed.text == tokenizer.decode(tokens, skip_special_tokens=False)
    # Bytes counted on the whole text, and turned into characters by decoding what comes before them.
    whole = tokenizer.decode(tokens, skip_special_tokens=False, continuation=True)
    dropped = len(whole) - len(placed.text)
    begin = 0
    for token, span in zip(tokens, placed.spans, strict=True):
        end = begin + len(tokenizer.token_bytes(token))
        first = len(whole.encode()[:begin].decode(errors="ignore"))
        behind = len(whole) - len(whole.encode()[end:].decode(errors="ignore"))
        assert span == (max(0, first - dropped), max(0, behind - dropped)), (token, text)
        begin = end


@deterministic
@given(st.lists(st.sampled_from([*b"aZ \xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xff", EOS, 259]), max_size=12))
def test_places_of_broken_characters(tokens: list[int]) -> None:
    """Each incomplete sequence is one replacement character, and the next character is another."""
    tokenizer = FakeTokenizer()
    text, spans = place_tokens(tokenizer, tokens)
    assert text == tokenizer.decode(tokens, skip_special_tokens=False)
    end = 0
    for token, (first, behind) in zip(tokens, spans, strict=True):
        data = tokenizer.token_bytes(token)
        assert end - 1 <= first <= end, "no character is passed over, and only the last is shared"
        assert behind == first if not data else first < behind <= len(text)
        if data.isascii():
            assert text[first:behind] == data.decode()
        end = max(end, behind)
    assert end == len(text)


def test_spellings_differ_from_the_text_and_have_their_names() -> None:
    assert respellings("Ça va") == {
        "leading_space": " Ça va",
        "lower": "ça va",
        "upper": "ÇA VA",
        "decomposed": "C\u0327a va",
    }
    assert respellings(" e\u0301") == {
        "no_leading_space": "e\u0301",
        "upper": " E\u0301",
        "composed": " é",
    }
    assert respellings("") == {"leading_space": " "}
