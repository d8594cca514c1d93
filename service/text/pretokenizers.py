"""Rules by which byte-level vocabularies cut text into words before merging, one for each name that GGUF files use.

The expressions are those of the models' own tokenizer.json; llama.cpp (src/llama-vocab.cpp) gives them these names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class WordRule:
    """A family of byte-level vocabularies, by its differences from GPT-2's."""

    splits: tuple[str, ...] = ()
    """Regular expressions, each applied to the parts that the one before left; empty means GPT-2's own."""
    single_digits: bool = False
    """Every digit is a word, before GPT-2's expression is applied."""
    nfc: bool = False
    """Text is brought to Unicode's composed form first."""
    ignore_merges: bool = False
    """A word that is a token as a whole becomes that token, even if the merges would cut it."""
    add_bos: bool = False
    """A text begins with the beginning-of-sequence token unless the file says otherwise."""

    def pre_tokenizer(self) -> PreTokenizer:
        """The rule as a step of the tokenizers package."""
        if self.splits:
            splits = [Split(Regex(expression), behavior="isolated") for expression in self.splits]
            return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])
        words = ByteLevel(add_prefix_space=False)
        return Sequence([Digits(individual_digits=True), words]) if self.single_digits else words


def _ranges(codes: str) -> str:
    """A character class from hexadecimal code points and ranges of them."""
    return "".join("-".join(chr(int(code, 16)) for code in entry.split("-")) for entry in codes.split())


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SYMBOLS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+@|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*@"
"""Words that end where upper case follows lower case; @ marks where a contraction may follow."""
_SYMBOLS_WITH_SLASH = _SYMBOLS_AND_SPACES.replace(r"[\r\n]*", r"[\r\n/]*")

_CL100K = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SYMBOLS_AND_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_SYMBOLS_AND_SPACES}"
_TEKKEN = rf"{_CASED.replace('@', '')}|\p{{N}}|{_SYMBOLS_WITH_SLASH}"
_GPT4O = rf"{_CASED.replace('@', _CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{_SYMBOLS_WITH_SLASH}"
_CASED_LETTERS = """
    41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D 37F 386 388-38A 38C 38E-3A1
    3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77
    1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE
    1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124
    2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3
    A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A
    10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""
"""Cased letters by code point, as DeepSeek's first vocabularies know them: fewer than Unicode has now."""
_CJK_AND_MORE = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_PUNCTUATION = r"!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_ranges(_CASED_LETTERS)}]+",
    rf"\s?[{_PUNCTUATION}]+",
    r"\s+$",
    _CJK_AND_MORE,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_AND_MORE, r"\p{N}")
_LLAMA_CPP_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)

_GPT2_RULE = WordRule()
_DIGITS_RULE = WordRule(single_digits=True)
_CL100K_RULE = WordRule(splits=(_CL100K,))
_QWEN2_RULE = WordRule(splits=(_QWEN2,), nfc=True)
_LLAMA3_RULE = WordRule(splits=(_CL100K,), ignore_merges=True, add_bos=True)

WORD_RULES: Mapping[str, WordRule] = {
    "default": WordRule(splits=_LLAMA_CPP_DEFAULT),
    "gpt-2": _GPT2_RULE,
    "phi-2": _GPT2_RULE,
    "a.x-4.0": _GPT2_RULE,
    "smollm": _DIGITS_RULE,
    "starcoder": _DIGITS_RULE,
    "refact": _DIGITS_RULE,
    "llama-bpe": _LLAMA3_RULE,
    "llama-v3": _LLAMA3_RULE,
    "llama3": _LLAMA3_RULE,
    "falcon3": _LLAMA3_RULE,
    "pixtral": _LLAMA3_RULE,
    "midm-2.0": _LLAMA3_RULE,
    "dbrx": _CL100K_RULE,
    "smaug-bpe": _CL100K_RULE,
    "qwen2": _QWEN2_RULE,
    "deepseek-r1-qwen": _QWEN2_RULE,
    "deepseek-llm": WordRule(splits=_DEEPSEEK_LLM),
    "deepseek-coder": WordRule(splits=_DEEPSEEK_CODER),
    "tekken": WordRule(splits=(_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": WordRule(splits=(_GPT4O,)),
}
"""Rules by their names in `tokenizer.ggml.pre`."""
