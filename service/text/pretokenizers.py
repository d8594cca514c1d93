"""How byte-level vocabularies cut text into words before merging: one entry for each name that GGUF files use.

The expressions are those of the models' own tokenizer.json; llama.cpp (src/llama-vocab.cpp) gives them these names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class WordRule:
    """What distinguishes one family of byte-level vocabularies from another."""

    splits: tuple[str, ...] = ()
    """Regular expressions, each applied to the parts that the one before left; none: GPT-2's own."""
    single_digits: bool = False
    """Every digit is a word, before GPT-2's expression is applied."""
    nfc: bool = False
    """Text is brought to Unicode's composed form first."""
    ignore_merges: bool = False
    """A word that is a token as a whole is that token, whatever the merges would make of it."""
    add_bos: bool = False
    """A text begins with the beginning-of-sequence token unless the file says otherwise."""

    def pre_tokenizer(self) -> PreTokenizer:
        """The rule as a step of the tokenizers package."""
        if self.splits:
            splits = [Split(Regex(expression), behavior="isolated") for expression in self.splits]
            return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])
        words = ByteLevel(add_prefix_space=False)
        return Sequence([Digits(individual_digits=True), words]) if self.single_digits else words


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SYMBOLS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+@|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*@"
"""Words that end where lower case is followed by upper case; @ marks where a contraction may follow."""
_SYMBOLS_WITH_SLASH = _SYMBOLS_AND_SPACES.replace(r"[\r\n]*", r"[\r\n/]*")

_CL100K = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SYMBOLS_AND_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_SYMBOLS_AND_SPACES}"
_TEKKEN = rf"{_CASED.replace('@', '')}|\p{{N}}|{_SYMBOLS_WITH_SLASH}"
_GPT4O = rf"{_CASED.replace('@', _CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{_SYMBOLS_WITH_SLASH}"
_LLAMA_CPP_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)

_GPT2_RULE = WordRule()
_DIGITS_RULE = WordRule(single_digits=True)
_LLAMA3_RULE = WordRule(splits=(_CL100K,), ignore_merges=True, add_bos=True)

WORD_RULES: Mapping[str, WordRule] = {
    "default": WordRule(splits=_LLAMA_CPP_DEFAULT),
    "gpt-2": _GPT2_RULE,
    "phi-2": _GPT2_RULE,
    "smollm": _DIGITS_RULE,
    "starcoder": _DIGITS_RULE,
    "refact": _DIGITS_RULE,
    "llama-bpe": _LLAMA3_RULE,
    "llama-v3": _LLAMA3_RULE,
    "llama3": _LLAMA3_RULE,
    "dbrx": WordRule(splits=(_CL100K,)),
    "qwen2": WordRule(splits=(_QWEN2,), nfc=True),
    "tekken": WordRule(splits=(_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": WordRule(splits=(_GPT4O,)),
}
"""By `tokenizer.ggml.pre`."""
