from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from service.text.detokenizer import Detokenizer
from service.text.stop import StopMatcher
from service.text.tokenizer import VocabularyTokenizer, load_tokenizer
from tests.service.text import training
from tests.service.text.training import deterministic

KINDS = ["byte-level", "sentencepiece"]
tokens_of_any_kind = st.lists(st.integers(0, 720), max_size=40)


@cache
def tokenizer(kind: str) -> VocabularyTokenizer:
    if kind == "sentencepiece":
        return load_tokenizer(training.sentencepiece_gguf(training.sentencepiece_model()))
    return load_tokenizer(training.byte_level_gguf(training.byte_level(ByteLevel(add_prefix_space=False)), "gpt-2"))


def stream(detokenizer: Detokenizer, tokens: list[int]) -> str:
    return "".join([detokenizer.push(token) for token in tokens]) + detokenizer.finish()


@pytest.mark.parametrize("kind", KINDS)
@deterministic
@given(tokens=tokens_of_any_kind, skip=st.booleans())
def test_the_stream_equals_decoding_at_once(kind: str, tokens: list[int], skip: bool) -> None:
    """Most token sequences are broken UTF-8, and ids beyond the vocabulary are among them."""
    streamed = stream(Detokenizer(tokenizer(kind), skip_special=skip), tokens)
    assert streamed == tokenizer(kind).decode(tokens, skip_special_tokens=skip, continuation=True)


@pytest.mark.parametrize("kind", KINDS)
@deterministic
@given(
    tokens=tokens_of_any_kind,
    stop=st.lists(st.text("e a\ufffd안", min_size=1, max_size=3), max_size=3),
    include=st.booleans(),
)
def test_the_stream_ends_at_the_first_stop_string(kind: str, tokens: list[int], stop: list[str], include: bool) -> None:
    whole = StopMatcher(stop, include)
    expected = whole.push(tokenizer(kind).decode(tokens, continuation=True)) + whole.finish()
    detokenizer = Detokenizer(tokenizer(kind), stop, include)
    assert stream(detokenizer, tokens) == expected
    assert detokenizer.stopped == whole.stopped


@pytest.mark.parametrize("kind", KINDS)
@deterministic
@given(text=training.texts(), data=st.data())
def test_no_stop_string_leaks_however_the_text_is_tokenised(kind: str, text: str, data: st.DataObject) -> None:
    subject = tokenizer(kind)
    text = text.replace("▁", "_").replace("<think>", "") + "."
    start = data.draw(st.integers(0, len(text) - 1))
    stop = text[start : start + data.draw(st.integers(1, 8))]
    halves = text[: (cut := data.draw(st.integers(0, len(text))))], text[cut:]
    tokens = [token for half in halves for byte in half.encode() for token in byte_tokens(subject, byte)]
    detokenizer = Detokenizer(subject, [stop])
    assert stream(detokenizer, tokens) == text[: text.index(stop)]
    assert detokenizer.stopped == stop


@cache
def single_bytes(subject: VocabularyTokenizer) -> dict[bytes, int]:
    spelt = {subject.token_bytes(token): token for token in range(subject.vocab_size)}
    return {data: token for data, token in spelt.items() if len(data) == 1}


def byte_tokens(subject: VocabularyTokenizer, byte: int) -> list[int]:
    return [single_bytes(subject)[bytes([byte])]]


@pytest.mark.parametrize("text", ["한국어 문장", "👩‍👩‍👧‍👦🇰🇷", "e\u0301"])
def test_characters_come_whole(text: str) -> None:
    subject = tokenizer("byte-level")
    detokenizer = Detokenizer(subject)
    pieces = [detokenizer.push(token) for byte in text.encode() for token in byte_tokens(subject, byte)]
    assert [piece for piece in pieces if piece] == list(text)
    assert detokenizer.finish() == ""


def test_an_incomplete_character_is_replaced_at_the_end_only() -> None:
    subject = tokenizer("byte-level")
    detokenizer = Detokenizer(subject)
    assert [detokenizer.push(byte_tokens(subject, byte)[0]) for byte in "한".encode()[:2]] == ["", ""]
    assert detokenizer.finish() == "\ufffd"


def test_a_completion_keeps_its_leading_space() -> None:
    subject = tokenizer("sentencepiece")
    tokens = subject.encode("capital", add_special_tokens=False, parse_special=False)
    assert stream(Detokenizer(subject), tokens) == " capital"


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("include", [True, False])
def test_a_stop_string_that_is_a_special_token_stops_on_its_id(skip: bool, include: bool) -> None:
    subject = tokenizer("byte-level")
    end = subject.special_token("<|im_end|>")
    assert end is not None
    detokenizer = Detokenizer(subject, ["there", "<|im_end|>"], include, skip)
    tokens = subject.encode("Hi the", add_special_tokens=False, parse_special=False)
    assert stream(detokenizer, [*tokens, end, *tokens]) == "Hi the" + "<|im_end|>" * include
    assert detokenizer.stopped == "<|im_end|>"


def test_a_special_token_that_ends_the_text_is_found_in_its_spelling_too() -> None:
    subject = tokenizer("byte-level")
    detokenizer = Detokenizer(subject, ["<|im_end|>"])
    assert stream(detokenizer, subject.encode("a<|im_end|>b", add_special_tokens=False, parse_special=False)) == "a"


def test_an_incomplete_character_before_a_special_stop_is_replaced() -> None:
    subject = tokenizer("byte-level")
    detokenizer = Detokenizer(subject, ["</s>"])
    end = subject.special_token("</s>")
    assert end is not None
    assert stream(detokenizer, [*byte_tokens(subject, "한".encode()[0]), end]) == "\ufffd"
