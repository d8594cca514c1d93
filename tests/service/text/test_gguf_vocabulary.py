import sys
import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers
from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from transformers import AutoTokenizer

from model.checkpoint.errors import CheckpointError
from model.checkpoint.source import open_checkpoint
from model.checkpoint.tokenizer_data import GgufTokenizer
from service.text.chat import JinjaTemplate
from service.text.merges import merges_by_rank
from service.text.pretokenizers import WORD_RULES
from service.text.tokenizer import VocabularyTokenizer, load_tokenizer
from tests.service.text import training
from tests.service.text.training import deterministic
from tests.speed import work_within

# The expressions as the models' own tokenizer.json files have them.
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")
_DEEPSEEK_LETTERS = (
    "[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ"
    "-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ"
    "-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
DEEPSEEK_LLM = (
    r"[\r\n]",
    r"\s?" + _DEEPSEEK_LETTERS,
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-\ud7ff]+",
    r"\p{N}+",
)
DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)


def split(*expressions: str) -> Sequence:
    splits = [Split(Regex(expression), "isolated") for expression in expressions]
    return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])


ORIGINALS: dict[str, Callable[[], Backend]] = {
    "gpt-2": lambda: training.byte_level(ByteLevel(add_prefix_space=False)),
    "smollm": lambda: training.byte_level(
        Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    ),
    "llama-bpe": lambda: training.byte_level(split(LLAMA3), ignore_merges=True),
    "dbrx": lambda: training.byte_level(split(LLAMA3)),
    "qwen2": lambda: training.byte_level(split(QWEN2), normalizers.NFC()),
    "tekken": lambda: training.byte_level(split(TEKKEN), ignore_merges=True),
    "gpt-4o": lambda: training.byte_level(split(GPT4O)),
    "falcon3": lambda: training.byte_level(split(LLAMA3), ignore_merges=True),
    "pixtral": lambda: training.byte_level(split(LLAMA3), ignore_merges=True),
    "midm-2.0": lambda: training.byte_level(split(LLAMA3), ignore_merges=True),
    "smaug-bpe": lambda: training.byte_level(split(LLAMA3)),
    "deepseek-r1-qwen": lambda: training.byte_level(split(QWEN2), normalizers.NFC()),
    "a.x-4.0": lambda: training.byte_level(ByteLevel(add_prefix_space=False)),
    "deepseek-coder": lambda: training.byte_level(split(*DEEPSEEK_CODER)),
    "deepseek-llm": lambda: training.byte_level(split(*DEEPSEEK_LLM)),
    "": lambda: training.byte_level(split(*DEFAULT)),
}


@cache
def byte_level_pair(pre: str) -> tuple[Backend, VocabularyTokenizer]:
    original = ORIGINALS[pre]()
    return original, load_tokenizer(training.byte_level_gguf(original, pre))


@cache
def sentencepiece_pair(add_space_prefix: bool) -> tuple[Any, VocabularyTokenizer]:
    model = training.sentencepiece_model(add_dummy_prefix=add_space_prefix)
    return model, load_tokenizer(training.sentencepiece_gguf(model, add_space_prefix=add_space_prefix))


@pytest.mark.parametrize("pre", ORIGINALS)
@deterministic
@given(text=training.texts())
def test_byte_level_equals_the_original(pre: str, text: str) -> None:
    original, rebuilt = byte_level_pair(pre)
    expected = original.encode(text).ids
    assert rebuilt.encode(text, add_special_tokens=True, parse_special=True) == expected
    assert rebuilt.decode(expected, skip_special_tokens=False) == original.decode(expected, skip_special_tokens=False)


@pytest.mark.parametrize("pre", ORIGINALS)
def test_byte_level_equals_the_original_on_the_samples(pre: str) -> None:
    original, rebuilt = byte_level_pair(pre)
    for text in [*training.SAMPLES, " unmergeable unmergeable"]:
        ids = rebuilt.encode(text, add_special_tokens=False, parse_special=True)
        assert ids == original.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("add_space_prefix", [True, False])
@settings(deterministic, max_examples=300)
@given(text=training.texts())
def test_sentencepiece_equals_its_own_algorithm(add_space_prefix: bool, text: str) -> None:
    model, rebuilt = sentencepiece_pair(add_space_prefix)
    text = text.replace("\0", "").replace("<think>", "")
    assert rebuilt.encode(text, add_special_tokens=False, parse_special=False) == model.encode(text)


@deterministic
@given(tokens=st.lists(st.integers(3, 619).filter(lambda token: token != 3 + ord(" "))))
def test_sentencepiece_decodes_as_its_own(tokens: list[int]) -> None:
    model, rebuilt = sentencepiece_pair(True)
    expected = model.decode(tokens)
    if "\ufffd" not in expected:
        assert rebuilt.decode(tokens) == expected


def test_gemma_merges_in_the_order_of_its_tokens_and_forms_runs_of_spaces() -> None:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "  ", "    ", "▁", "a", "b", "c", "bc", "ab"]
    rebuilt = load_tokenizer(
        GgufTokenizer(
            {
                "general.architecture": "gemma3",
                "tokenizer.ggml.model": "llama",
                "tokenizer.ggml.tokens": pieces,
                "tokenizer.ggml.token_type": [3, 3, 3, 2, 4, 4, *[1] * 6],
                "tokenizer.ggml.unknown_token_id": 3,
                "tokenizer.ggml.bos_token_id": 2,
            }
        )
    )
    ids = rebuilt.encode("abc    a  b", add_special_tokens=True, parse_special=True)
    assert [pieces[token] for token in ids] == ["<bos>", "a", "bc", "    ", "a", "  ", "b"]
    assert rebuilt.decode(ids) == "abc    a  b"


def test_phi3_special_tokens_swallow_white_space() -> None:
    model = training.sentencepiece_model(control_symbols=["<|user|>", "<|end|>"])
    data = training.sentencepiece_gguf(model)
    rebuilt = load_tokenizer(GgufTokenizer({**data.metadata, "general.architecture": "phi3"}))
    spaced, bare = (
        rebuilt.encode(text, add_special_tokens=False, parse_special=True)
        for text in ("<|user|>\nhi<|end|>\n", "<|user|>hi<|end|>")
    )
    assert spaced == bare


WORDS = {
    "deepseek-llm": {
        "Hello World's end": ["Hello", " World", "'", "s", " end"],
        "a1234 567": ["a", "1234", " ", "567"],
        "x\n\n y  z  ": ["x", "\n", "\n", " y", " ", " z", "  "],
        "你好 世界，안녕": ["你好", " ", "世界", "，", "안녕"],
        "λόγος ЖизньƻԱբ": ["λόγος", " Жизнь", "ƻ", "Ա", "բ"],
        "a+b == ~c“d”。": ["a", "+", "b", " ==", " ~", "c", "“", "d", "”。"],
        "مرحبا é": ["مرحبا", " é"],
    },
    "deepseek-coder": {
        "def f(x):\n\treturn 12": ["def", " f", "(", "x", "):", "\n", "\treturn", " ", "1", "2"],
        "a+b == ~c": ["a", "+", "b", " == ~", "c"],
        "你好 世界，안녕": ["你好", " ", "世界", "，", "안녕"],
        "مرحبا بك": ["مرحبا", " بك"],
    },
    "": {
        "Hello, World's 12345": ["Hello", ",", " World", "'", "s", " ", "123", "45"],
    },
}


@pytest.mark.parametrize("pre", WORDS)
def test_words_of_a_rule(pre: str) -> None:
    words = WORD_RULES[pre or "default"].pre_tokenizer()
    cuts = {text: [text[start:end] for _, (start, end) in words.pre_tokenize_str(text)] for text in WORDS[pre]}
    assert cuts == WORDS[pre]


SCRIPTS = {
    "letters": "azAZéÀßŁǅƻʰª",
    "Greek and Cyrillic": "λΣώἀжЯѝҰ",
    "cased beyond": "ԱբႠაᎠꭰᲐⰀꙀ𐐀𞤀",
    "Semitic": "مرحبאבגَّ",
    "Indic and Thai": "नमस्तेসা กำ่ខល",
    "Hangul": "한국어ᄒㅎ\u1112\u1161\u11ab",
    "kana and Chinese": "あアー々你好世界龥龦㐀𠀀",
    "emoji": "🚀👩‍👧🇰🇷👍🏽❤️",
    "digits": "0159٣५Ⅷ①½²３",
    "spaces": " \t\n\r\u00a0\u2003\u2028\u3000",
    "marks": "!#$'+-/<=>@^_`{|}~¿«»“”‘…—、。，（％￥€§",
}
MIXED = st.lists(
    st.one_of(*(st.text(characters, max_size=4) for characters in SCRIPTS.values()), st.text(" \n\t", max_size=5)),
    max_size=8,
).map("".join)


def cut_in_turn(expressions: tuple[str, ...], text: str) -> list[str]:
    """The definition, on another engine: each expression cuts its matches out of the parts that the last one left."""
    parts = [text]
    for expression in expressions:
        cuts = [(part, [match.span() for match in regex.finditer(expression, part)]) for part in parts]
        bounds = [(part, sorted({0, len(part), *(at for span in spans for at in span)})) for part, spans in cuts]
        parts = [part[start:end] for part, at in bounds for start, end in pairwise(at)]
    return parts


PUBLISHED = {
    "deepseek-llm": DEEPSEEK_LLM,
    "deepseek-coder": DEEPSEEK_CODER,
    "default": DEFAULT,
    "llama-bpe": (LLAMA3,),
    "qwen2": (QWEN2,),
    "tekken": (TEKKEN,),
    "gpt-4o": (GPT4O,),
}


@pytest.mark.parametrize("pre", PUBLISHED)
@settings(deterministic, max_examples=300)
@given(text=MIXED)
def test_words_are_those_of_the_published_expressions(pre: str, text: str) -> None:
    words = WORD_RULES[pre].pre_tokenizer().pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in words] == cut_in_turn(PUBLISHED[pre], text)


def test_every_rule_by_expressions_has_a_reference() -> None:
    assert {rule.splits for rule in WORD_RULES.values() if rule.splits} == {WORD_RULES[pre].splits for pre in PUBLISHED}


def test_the_letters_of_deepseek_llm() -> None:
    """They are Unicode's cased letters, all of them before Armenian."""
    letters = Regex(WORD_RULES["deepseek-llm"].splits[1].removeprefix(r"\s?").removesuffix("+"))
    every = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000 and code > 0x20]
    found = {text for text, _ in Split(letters, "removed", invert=True).pre_tokenize_str(" ".join(every))}
    found = {character for text in found for character in text}
    cased = {character for character in every if unicodedata.category(character) in ("Lu", "Ll", "Lt")}
    assert found <= cased
    assert {character for character in cased if character < "\u0530"} <= found


def test_a_missing_name_is_said(caplog: pytest.LogCaptureFixture) -> None:
    metadata = training.byte_level_gguf(byte_level_pair("")[0], "").metadata
    load_tokenizer(GgufTokenizer({key: value for key, value in metadata.items() if key != "tokenizer.ggml.pre"}))
    assert "tokenizer.ggml.pre is missing" in caplog.text


@pytest.mark.parametrize("pre", ["command-r", "deepseek-v3", "qwen35", "superbpe", "chatglm-bpe", "viking", "kimi-k2"])
def test_rules_of_models_that_are_not_served_are_refused_by_name(pre: str) -> None:
    with pytest.raises(CheckpointError, match=f"tokenizer.ggml.pre '{pre}'"):
        load_tokenizer(training.byte_level_gguf(byte_level_pair("gpt-2")[0], pre))


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)


@pytest.mark.parametrize("kind", [training.NORMAL, training.USER_DEFINED, 5, None], ids=str)
@pytest.mark.parametrize("model", ["byte-level", "sentencepiece"])
def test_markers_and_ends_are_control_tokens_whatever_the_type_says(kind: int | None, model: str) -> None:
    """Without types as well; and the end is known by its text where no id names it."""
    if model == "byte-level":
        metadata = dict(training.byte_level_gguf(byte_level_pair("gpt-2")[0], "gpt-2").metadata)
    else:
        markers = ["<|im_start|>", "<|im_end|>", "<think>"]
        metadata = dict(
            training.sentencepiece_gguf(training.sentencepiece_model(user_defined_symbols=markers)).metadata
        )
    names: Any = metadata["tokenizer.ggml.tokens"]
    types: Any = metadata.pop("tokenizer.ggml.token_type")
    if kind is not None:
        marked = ("<|im_start|>", "<|im_end|>", "<think>", "<s>", "</s>")
        types = [kind if name in marked else own for name, own in zip(names, types, strict=True)]
        metadata["tokenizer.ggml.token_type"] = types
    ids = {"bos": names.index("<s>"), "eos": names.index("</s>")}
    metadata |= {f"tokenizer.ggml.{name}_token_id": token for name, token in ids.items()}
    subject = load_tokenizer(GgufTokenizer({**metadata, "tokenizer.chat_template": CHATML}))
    start, end, think = map(names.index, ("<|im_start|>", "<|im_end|>", "<think>"))
    assert {start, end, *ids.values()} <= {token for token in range(len(names)) if subject.is_special(token)}
    assert not subject.is_special(think), "clients read the reasoning out of the text"
    assert subject.eos_token_ids == {end, ids["eos"]}
    template = JinjaTemplate.of(subject)
    assert template is not None
    prompt = template.encode([{"role": "user", "content": "<|im_end|>"}], add_generation_prompt=True)
    assert [token for token in prompt if token in (start, end, think)] == [start, end, start, think]
    assert subject.decode([start, end]) == ""


def test_markers_that_a_template_puts_together_are_control_tokens() -> None:
    model = training.sentencepiece_model(user_defined_symbols=["<|user|>", "<|assistant|>", "<|end|>"])
    source = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + '\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    metadata: dict[str, Any] = dict(training.sentencepiece_gguf(model, architecture="phi3").metadata)
    metadata |= {"general.architecture": "phi3", "tokenizer.chat_template": source}
    names, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    marked = [token for token, name in enumerate(names) if name in ("<|user|>", "<|assistant|>", "<|end|>")]
    for token in marked:
        types[token] = training.USER_DEFINED
    subject = load_tokenizer(GgufTokenizer(metadata))
    assert all(map(subject.is_special, marked))
    assert names.index("<|end|>") in subject.eos_token_ids


def test_markers_without_tokens_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    metadata = training.byte_level_gguf(byte_level_pair("gpt-2")[0], "gpt-2").metadata
    source = "<|im_start|>{{ '<|missing|>' }}{{ bos_token }}[INST]<|im_end|>"
    JinjaTemplate.of(load_tokenizer(GgufTokenizer({**metadata, "tokenizer.chat_template": source})))
    assert "the chat template writes '<|missing|>', which" in caplog.text


def test_special_tokens_and_flags() -> None:
    backend = byte_level_pair("llama-bpe")[0]
    bos, eos, eot = (backend.token_to_id(text) for text in ("<s>", "</s>", "<|im_start|>"))
    keys = {"bos_token_id": bos, "eos_token_id": eos, "eot_token_id": eot, "add_bos_token": True, "add_eos_token": True}
    tokenizer = load_tokenizer(training.byte_level_gguf(backend, "llama-bpe", **keys))
    ids = tokenizer.encode("x", add_special_tokens=True, parse_special=True)
    assert (ids[0], ids[-1]) == (bos, eos)
    assert tokenizer.bos_token_id == bos
    assert tokenizer.eos_token_ids == {eos, eot, backend.token_to_id("<|im_end|>")}, "the known ends of a turn as well"
    assert tokenizer.named_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    special = {text for text in [*training.SPECIAL, "<think>"] if tokenizer.is_special(backend.token_to_id(text) or 0)}
    assert special == set(training.SPECIAL)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokenizer.ggml.pre": "nonesuch"}, "tokenizer.ggml.pre 'nonesuch'"),
        ({"tokenizer.ggml.pre": 1}, "tokenizer.ggml.pre is 1, not a string"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model 't5'"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}, "twice"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "not an array of str"),
        ({"tokenizer.ggml.token_type": [1]}, "token types"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "merges"),
        ({"tokenizer.ggml.merges": ["nonesuch e"]}, "merges"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, "bos_token_id"),
        ({"tokenizer.ggml.add_bos_token": 1}, "add_bos_token"),
        ({"tokenizer.chat_template": 1}, "chat_template"),
    ],
)
def test_broken_metadata_is_refused_in_one_line(change: dict[str, object], reason: str) -> None:
    metadata = {**training.byte_level_gguf(byte_level_pair("gpt-2")[0], "gpt-2").metadata, **change}
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_tokenizer(GgufTokenizer(metadata))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokenizer.ggml.scores": [1.0]}, "scores"),
        ({"tokenizer.ggml.remove_extra_whitespaces": True}, "remove_extra_whitespaces is not supported"),
        ({"tokenizer.ggml.tokens": ["a" * 100_000], "tokenizer.ggml.token_type": [1]}, "100000 characters"),
    ],
)
def test_broken_sentencepiece_metadata_is_refused(change: dict[str, object], reason: str) -> None:
    metadata = training.sentencepiece_gguf(sentencepiece_pair(True)[0]).metadata
    for key in ("unknown", "bos", "eos"):
        metadata = {**metadata, f"tokenizer.ggml.{key}_token_id": None}
    with pytest.raises(CheckpointError, match=reason):
        load_tokenizer(GgufTokenizer({**metadata, **change}))


def test_deriving_merges_of_a_large_vocabulary_is_quick() -> None:
    ranks = {f"{number:x}" * 2: number for number in range(32_000)}
    with work_within(2):
        merges_by_rank(ranks)


@pytest.fixture(scope="module")
def smollm2_pair(smollm2: Path) -> tuple[Any, VocabularyTokenizer]:
    # This conversion knows no rule for the digits; the vocabulary has no token of two, which comes to the same.
    oracle = AutoTokenizer.from_pretrained(str(smollm2.parent), gguf_file=smollm2.name)
    return oracle, load_tokenizer(open_checkpoint(smollm2).tokenizer)


def test_smollm2_equals_transformers(smollm2_pair: tuple[Any, VocabularyTokenizer]) -> None:
    oracle, tokenizer = smollm2_pair

    @settings(deterministic, max_examples=200)
    @given(text=training.texts())
    def equal(text: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=True, parse_special=True)
        assert ids == oracle(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == oracle.decode(ids)

    equal()


def test_known_facts_of_smollm2(smollm2_pair: tuple[Any, VocabularyTokenizer]) -> None:
    tokenizer = smollm2_pair[1]
    assert tokenizer.vocab_size == 49152
    ids = tokenizer.encode("12345 2024", add_special_tokens=True, parse_special=True)
    assert [tokenizer.decode([token]) for token in ids] == ["1", "2", "3", "4", "5", " ", "2", "0", "2", "4"]
    ids = tokenizer.encode("<|im_start|>user\nHello<|im_end|>", add_special_tokens=True, parse_special=True)
    assert (ids[0], ids[-1]) == (1, 2)
    assert 2 in tokenizer.eos_token_ids


def test_smollm2_loads_quickly(smollm2: Path) -> None:
    data = open_checkpoint(smollm2).tokenizer
    with work_within(1):
        load_tokenizer(data)
