"""No text has fewer tokens than its length tells, and what cannot fit is not tokenised."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers
from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split, Whitespace

from service.text.chat import JinjaTemplate
from service.text.fewest_tokens import FewestTokens, TooLongError
from service.text.spelling import BYTE_ALPHABET
from service.text.tokenizer import VocabularyTokenizer
from tests.service.text import training
from tests.service.text.test_tokenizer import KINDS, tokenizer
from tests.service.text.training import deterministic

BYTES = sorted(ByteLevel.alphabet())
UNBOUNDED = {"phi3", "late-additions"}
"""Their added tokens take the white space beside them."""


def toy(*, last: str = "aaaa", **options: Any) -> Backend:
    """All bytes, and tokens of 2 and 4 letters."""
    tokens = [*BYTES, "aa", last]
    merges = [("a", "a"), (last[:2], last[2:])]
    backend = Backend(models.BPE({text: place for place, text in enumerate(tokens)}, merges, **options))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    return backend


@pytest.mark.parametrize("kind", KINDS)
@deterministic
@given(text=training.texts(), again=st.integers(1, 4), parse=st.booleans())
def test_no_text_has_fewer_tokens(kind: str, text: str, again: int, parse: bool) -> None:
    subject = tokenizer(kind)
    fewest = subject.fewest_tokens.of(text * again)
    assert fewest <= len(subject.encode(text * again, add_special_tokens=False, parse_special=parse))


@pytest.mark.parametrize("kind", KINDS)
def test_long_tokens_alone_have_as_few_tokens_as_told(kind: str) -> None:
    """Every kind of tokenizer but those of which nothing can be told is bound by its own longest tokens."""
    subject = tokenizer(kind)
    if kind in UNBOUNDED:
        assert subject.fewest_tokens.of("x" * 10_000) == 0
        return
    assert subject.fewest_tokens.of("x" * 10_000) > 10_000 / 40
    for token in range(subject.vocab_size):
        text = subject.decode([token], skip_special_tokens=False) * 3
        assert subject.fewest_tokens.of(text) <= max(
            1, len(subject.encode(text, add_special_tokens=False, parse_special=True))
        )


@pytest.mark.parametrize("length", [1, 3, 4, 5, 400])
def test_the_bound_is_reached(length: int) -> None:
    backend = toy()
    text = "aaaa" * (length // 4) + "a" * min(1, length % 4)
    tokens = len(backend.encode(text, add_special_tokens=False).ids)
    assert FewestTokens(backend).of(text) == tokens
    backend.add_tokens([AddedToken("<thinking>", normalized=False)])
    text = "<thinking>" * length
    assert FewestTokens(backend).of(text) == length == len(backend.encode(text, add_special_tokens=False).ids)


def removing() -> Backend:
    backend = toy()
    backend.pre_tokenizer = Sequence([Split(Regex(r"\s"), "removed"), ByteLevel(use_regex=False)])
    return backend


def without_white_space() -> Backend:
    backend = toy()
    backend.pre_tokenizer = Sequence([Whitespace(), ByteLevel(use_regex=False)])
    return backend


def normalizing(normalizer: normalizers.Normalizer) -> Backend:
    backend = toy()
    backend.normalizer = normalizer
    return backend


def stripping(**sides: bool) -> Backend:
    backend = toy()
    backend.add_special_tokens([AddedToken("<mask>", normalized=False, special=True, **sides)])
    return backend


def lacking(*bytes: int, **options: Any) -> Backend:
    """Bytes without a token are left out, or become one unknown token together."""
    tokens = [*(text for text in BYTES if BYTE_ALPHABET[text] not in bytes), "[UNK]"]
    backend = Backend(models.BPE({text: place for place, text in enumerate(tokens)}, [], **options))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    return backend


def of_characters(byte_tokens: int, *, byte_fallback: bool) -> Backend:
    """Characters beyond its alphabet become one unknown token together, unless all their bytes are tokens in use."""
    tokens = ["a", "[UNK]", *(f"<0x{byte:02X}>" for byte in range(byte_tokens))]
    vocabulary = {text: place for place, text in enumerate(tokens)}
    return Backend(models.BPE(vocabulary, [], unk_token="[UNK]", fuse_unk=True, byte_fallback=byte_fallback))


@pytest.mark.parametrize(
    "backend",
    [
        removing(),
        without_white_space(),
        normalizing(normalizers.Lowercase()),
        normalizing(normalizers.Replace("ab", "a")),
        normalizing(normalizers.Replace(Regex(" +"), " ")),
        normalizing(normalizers.Sequence([normalizers.Prepend(" "), normalizers.Strip()])),
        stripping(lstrip=True),
        stripping(rstrip=True),
        lacking(0x80),
        of_characters(256, byte_fallback=False),
        of_characters(255, byte_fallback=True),
        Backend(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")),
    ],
)
def test_nothing_is_told_where_a_token_may_stand_for_any_length(backend: Backend) -> None:
    assert FewestTokens(backend).of("a" * 1000) == 0


@pytest.mark.parametrize(
    "normalizer",
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"), normalizers.Sequence([normalizers.NFC()])],
)
def test_a_normalizer_that_keeps_the_length_keeps_the_bound(normalizer: normalizers.Normalizer) -> None:
    assert FewestTokens(normalizing(normalizer)).of("a" * 1000) == 250


@pytest.mark.parametrize("options", [{}, {"unk_token": "[UNK]", "fuse_unk": True}], ids=["left out", "unknown"])
def test_characters_without_a_token_are_not_counted(options: dict[str, Any]) -> None:
    """SmolLM2 has no tokens for some control characters, and none for bytes that begin no character."""
    backend = lacking(0x04, 0x1D, 0xC0, 0xF1, **options)
    for text in ("\x04\x1d" * 500, "a\x04" * 500, "\x1d" + "é" * 500, "À" * 500, "\U00040000" * 500):
        fewest = FewestTokens(backend).of(text)
        assert fewest <= len(backend.encode(text, add_special_tokens=False).ids)
        assert fewest == len(text.replace("\x04", "").replace("\x1d", "")) / len("[UNK]")


def test_characters_that_compose_are_not_counted() -> None:
    """U+1100 U+1161 U+11A8 is one character, composed, of three bytes."""
    subject = FewestTokens(normalizing(normalizers.NFC()))
    assert subject.of("aaa") == 1
    assert subject.of("\u1100\u1161\u11a8" * 100) == 0


def test_a_token_that_is_sought_in_normalised_text_counts_as_normalised() -> None:
    backend = normalizing(normalizers.Replace(" ", "▁▁▁"))
    backend.add_tokens([AddedToken("b b b", normalized=True)])
    text = "b▁▁▁b▁▁▁b"
    assert len(backend.encode(text, add_special_tokens=False).ids) == 1
    assert FewestTokens(backend).of(text) == 1


@pytest.mark.parametrize("most", [0, 99])
def test_too_long_a_text_is_not_tokenised(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = tokenizer("gpt2")
    template = JinjaTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", subject)
    text = "x" * 100_000
    told = [{"role": "user", "content": text}]
    every = subject.encode(text, add_special_tokens=False, parse_special=True)
    assert template.encode(told, add_generation_prompt=False, most=100_000) == every
    monkeypatch.setattr(VocabularyTokenizer, "encode_pieces", None)
    with pytest.raises(TooLongError) as encoded:
        subject.encode(text, add_special_tokens=False, parse_special=True, most=most)
    with pytest.raises(TooLongError) as rendered:
        template.encode(told, add_generation_prompt=False, most=most)
    assert encoded.value.fewest == rendered.value.fewest == subject.fewest_tokens.of(text) > most
