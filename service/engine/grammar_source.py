"""A grammar as clients write it, in the form of the package llguidance, and its limits."""

import json
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from service.engine.messages import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_LONGEST_REASON = 300
_LIMITS = LLParserLimits(max_lexer_states=20_000, verbose_errors=False)
"""Limits of one grammar and of one mask; the package's own, but for memory: a state takes up to 2 kB."""
_JSON: "JsonCompileOptions" = {"whitespace_pattern": r" |\n[ \t]{0,40}", "lenient": False}
"""JSON with a space or an indented new line between its parts: without a bound, a model may write white space for ever.
Keywords of a schema that the package does not implement are errors."""
_BOOLEAN_SCHEMAS = {"true": "{}", "false": '{"enum":[]}'}
"""The package can give its options to objects alone."""


class GrammarError(Exception):
    """A grammar is not valid, not supported or too complex; the message is one line, fit for the client."""


def compiled(source: str, tokenizer: LLTokenizer) -> LLMatcher:
    """The beginning of a grammar in the package's form. Raises GrammarError."""
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=_LIMITS)
    check(matcher)
    return matcher


def mask_of(matcher: LLMatcher) -> bytes:
    """The tokens that may come next, as in `Draw.allowed`. Raises GrammarError."""
    mask = matcher.compute_bitmask()
    check(matcher)
    return mask


def check(matcher: LLMatcher) -> None:
    """Raise GrammarError if the grammar cannot be followed from here."""
    if matcher.is_error():
        raise GrammarError(one_line(matcher.get_error()))


def to_llguidance(grammar: Grammar) -> str:
    """A grammar in the package's form. Raises GrammarError for one that can be seen to be wrong without compiling."""
    source = grammar.source
    match grammar.kind:
        case "json_schema":
            try:
                return LLMatcher.grammar_from_json_schema(_BOOLEAN_SCHEMAS.get(source, source), overrides=_JSON)
            except ValueError as error:
                raise GrammarError(f"not a JSON schema: {one_line(str(error))}") from None
        case "regex":
            return LLMatcher.grammar_from_regex(source)
        case "choice":
            texts = (json.dumps(text, ensure_ascii=False) for text in json.loads(source))
            return LLMatcher.grammar_from_lark("start: " + " | ".join(texts))
        case "grammar":
            return LLMatcher.grammar_from_lark(_to_lark(source))


def one_line(message: str) -> str:
    """The package's message in short. "NoExtension" is its word for a place from which nothing leads on."""
    if message.startswith("NoExtension"):
        return "no text fits it"
    message = message.partition("<non-verbose/>")[0].partition("<state>")[0]
    return " ".join(message.split())[:_LONGEST_REASON] or "it is not valid"


def _to_lark(source: str) -> str:
    """A Lark grammar as it is, and a GBNF grammar as a Lark grammar. Raises GrammarError."""
    try:
        return any_to_lark(source)
    except Exception as error:  # The package raises anything over a text that is no grammar, up to a RecursionError.
        raise GrammarError(f"neither a Lark nor a GBNF grammar: {one_line(str(error))}") from None
