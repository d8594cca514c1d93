from functools import cache

import pytest
from hypothesis import given, settings
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


SCRIPTS = [
    *(
        "안녕하세요",
        "\u1112\u1161\u11ab",
        "こんにちは",
        "が",
        "か\u3099",
        "東京",
        "ｶﾞ",
        "e\u0301",
        "a\u0323\u0302",
        "ซิ",
        "नमस्ते",
    ),
    *("👩‍👩‍👧‍👦", "🏳️‍🌈", "🇰🇷", "👍🏽", "1️⃣", "☺️", "\u200d", "\ufe0f", "\u0301", "\ufffd", " ", "\n", "the"),
]
"""Characters of several bytes, and characters that others change."""


@st.composite
def written(draw: st.DrawFn, kind: str) -> list[int]:
    """Tokens of such text, as a model may draw them: whole words, single bytes, halves of characters, anything."""
    subject, tokens = tokenizer(kind), list[int]()
    for _ in range(draw(st.integers(1, 5))):
        text = draw(st.sampled_from(SCRIPTS))
        match draw(st.integers(0, 3)):
            case 0:
                tokens += subject.encode(text, add_special_tokens=False, parse_special=False)
            case 1:
                tokens += [token for byte in text.encode() for token in byte_tokens(subject, byte)]
            case 2:
                half = text.encode()[: draw(st.integers(1, 4))]
                tokens += [token for byte in half for token in byte_tokens(subject, byte)]
            case 3:
                tokens += draw(st.lists(st.integers(0, 720), max_size=2))
    return tokens


@pytest.mark.parametrize("kind", KINDS)
@settings(deterministic, max_examples=1000)
@given(data=st.data())
def test_every_stop_string_of_every_script_cuts_a_stream_as_the_whole_text(kind: str, data: st.DataObject) -> None:
    """2,000 cases, each with every place where a stop string may begin."""
    subject = tokenizer(kind)
    tokens, length = data.draw(written(kind)), data.draw(st.integers(1, 4))
    text = subject.decode(tokens, continuation=True)
    assert stream(Detokenizer(subject), tokens) == text
    for start in range(len(text)):
        stop = text[start : start + length]
        detokenizer = Detokenizer(subject, [stop])
        streamed = stream(detokenizer, tokens)
        # A special token in a stop string is looked for where the token is, which the text does not show.
        if not subject.spells_special(stop):
            assert (streamed, detokenizer.stopped) == (text[: text.index(stop)], stop)


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


def special(subject: VocabularyTokenizer, text: str) -> int:
    [token] = subject.encode(text, add_special_tokens=False, parse_special=True)
    assert subject.is_special(token)
    return token


STOPS_WITH_SPECIAL_TOKENS = {
    "<|im_end|>": "Hi the",
    "<|im_end|>\n": "Hi the",
    "the<|im_end|>": "Hi ",
    " the<|im_end|>\n": "Hi",
    "e<|im_end|>\n<|im_start|>user": "Hi th",
    "<|im_end|>\n<|im_start|>": "Hi the",
    "<|im_start|>u": "Hi the\n",
    "\n<|im_start|>": "Hi the",
    "the\nu": "Hi ",
    "<|im_end|>user": None,
    "<|im_start|>\n": None,
    "im_end": None,
}
"""Where stop strings cut "Hi the<|im_end|>\\n<|im_start|>user", whose special tokens are left out; None for nowhere."""


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize(("stop", "before"), STOPS_WITH_SPECIAL_TOKENS.items(), ids=STOPS_WITH_SPECIAL_TOKENS)
def test_a_stop_string_is_found_across_special_tokens_that_the_text_leaves_out(
    stop: str, before: str | None, include: bool
) -> None:
    subject = tokenizer("byte-level")
    tokens = [
        *(token for byte in b"Hi the" for token in byte_tokens(subject, byte)),
        special(subject, "<|im_end|>"),
        *byte_tokens(subject, ord("\n")),
        special(subject, "<|im_start|>"),
        *(token for byte in b"user" for token in byte_tokens(subject, byte)),
    ]
    detokenizer = Detokenizer(subject, ["nothing", stop], include)
    text = "Hi the\nuser" if before is None else before + stop * include
    assert stream(detokenizer, tokens) == text
    assert detokenizer.stopped == (stop if before is not None else None)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("include", [True, False])
def test_a_stop_string_that_is_a_special_token_stops_on_it(skip: bool, include: bool) -> None:
    subject = tokenizer("byte-level")
    detokenizer = Detokenizer(subject, ["there", "<|im_end|>"], include, skip)
    tokens = subject.encode("Hi the", add_special_tokens=False, parse_special=False)
    assert stream(detokenizer, [*tokens, special(subject, "<|im_end|>"), *tokens]) == "Hi the" + "<|im_end|>" * include
    assert detokenizer.stopped == "<|im_end|>"


def test_a_special_token_that_ends_the_text_is_found_in_its_spelling_too() -> None:
    subject = tokenizer("byte-level")
    for stop in ("<|im_end|>", "a<|im_end|>", "<|im_end|>b"):
        detokenizer = Detokenizer(subject, [stop])
        spelt = subject.encode("a<|im_end|>b", add_special_tokens=False, parse_special=False)
        assert stream(detokenizer, spelt) == "a".removesuffix(stop[0])


@pytest.mark.parametrize("skip", [True, False])
def test_a_token_that_ends_the_completion_may_complete_a_stop_string(skip: bool) -> None:
    subject = tokenizer("byte-level")
    end = special(subject, "</s>")
    for stop, text in {"the</s>": "Hi ", "thee": "Hi the", "the</s>\n": "Hi the"}.items():
        detokenizer = Detokenizer(subject, [stop], skip_special=skip)
        tokens = subject.encode("Hi the", add_special_tokens=False, parse_special=False)
        assert "".join(map(detokenizer.push, tokens)) + detokenizer.end(end) == text


@pytest.mark.parametrize("stop", ["</s>", "x</s>", "\ufffd</s>"])
def test_an_incomplete_character_before_a_special_stop_is_replaced(stop: str) -> None:
    subject = tokenizer("byte-level")
    tokens = [*byte_tokens(subject, ord("x")), *byte_tokens(subject, "한".encode()[0]), special(subject, "</s>")]
    detokenizer = Detokenizer(subject, [stop])
    assert stream(detokenizer, tokens) == "x\ufffd"
    assert detokenizer.stopped == ("</s>" if stop == "</s>" else None)


@pytest.mark.parametrize(
    ("minimum", "stop", "text"),
    [
        (0, "ab", ""),
        (1, "ab", ""),
        (2, "ab", "ab"),
        (3, "ab", "ab"),
        (4, "ab", "abab"),
        (9, "ab", "ababab"),
        (2, "ba", "a"),
        (3, "ba", "aba"),
        (3, "abab", ""),
        (4, "b</s>", "aba"),
        (5, "</s>", "ababab"),
        (4, "</s>", "abab"),
        (5, "</s>a", "abab"),
        (6, "</s>a", "ababab"),
    ],
)
def test_no_stop_string_is_looked_for_in_the_first_min_tokens(minimum: int, stop: str, text: str) -> None:
    """A string that is complete with a later token counts, wherever it begins."""
    subject = tokenizer("byte-level")
    a, b, end = *byte_tokens(subject, ord("a")), *byte_tokens(subject, ord("b")), special(subject, "</s>")
    detokenizer = Detokenizer(subject, [stop], min_tokens=minimum)
    assert stream(detokenizer, [a, b, a, b, end, a, b]) == text
