"""The grammar of answers with calls, for choices that have to hold: a call is required, or its arguments are strict.

The grammar is in llguidance's form of Lark. This module knows the form of a model's calls and of its reasoning, and
nothing of how a grammar is followed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.text.reasoning import ReasoningFormat
from service.text.tools.formats import ToolFormat

_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
"""JSON as models are taught to write calls, on one line. Keywords of a schema that llguidance does not implement are
errors."""


@dataclass(frozen=True, slots=True)
class CallableFunction:
    """A function that may be called, with the JSON schema that its arguments have to fit; None for any object."""

    name: str
    schema: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRule:
    """The answers that are allowed."""

    functions: Sequence[CallableFunction]
    required: bool
    """Whether there has to be a call; if not, the answer may be text instead, with or without calls after it."""
    parallel: bool
    content: Any = None
    """JSON schema that takes the place of text without calls; None for any text."""


class _Markers:
    """Writes the markers of a vocabulary, of which some are special tokens, as parts of a grammar."""

    def __init__(self, special: Callable[[str], int | None]) -> None:
        self._special = special

    def marker(self, text: str) -> str:
        token = self._special(text)
        return json.dumps(text) if token is None else f"<[{token}]>"

    def rule_up_to(self, name: str, text: str) -> str:
        """A rule for any text up to a marker, and the marker itself."""
        lazy = "" if self._special(text) is not None else "[lazy]"
        return f"{name}{lazy}: TEXT {self.marker(text)}"


def call_grammar(
    form: ToolFormat | None,
    rule: CallRule,
    special: Callable[[str], int | None],
    *,
    reasoning: ReasoningFormat | None = None,
    reasoning_opened: bool = False,
) -> str:
    """The grammar of the answers that a rule allows, after any reasoning.

    The form may be None where there are no functions, but content of a schema. `special` gives the id of a marker that
    is a special token of the vocabulary, and None for one that is text.
    """
    write = _Markers(special)
    rules = ["%llguidance {}", r"TEXT: /(.|\n)*/"]
    if reasoning is None:
        rules.append("start: answer")
    else:
        opening = "" if reasoning_opened else f"{write.marker(reasoning.opening)} "
        rules.append(f"start: {'thoughts answer' if reasoning_opened else 'thoughts answer | answer'}")
        rules.append(rf"thoughts: {opening}reasoning /\n{{0,2}}/")
        rules.append(write.rule_up_to("reasoning", reasoning.closing))
    if rule.content is not None:
        rules.append(f"content: %json {_json_schema(rule.content)}")
    if form is None:
        rules.append("answer: content")
    else:
        rules += _answer(form, rule, write)
        rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(rule.functions))))
        rules += [f"call_{index}: {_call(form, function, write)}" for index, function in enumerate(rule.functions)]
    return "\n".join(rules) + "\n"


def _answer(form: ToolFormat, rule: CallRule, write: _Markers) -> list[str]:
    """The rules for the answer itself; those of a call are not among them."""
    calls = f"calls: {_calls(form, rule.parallel, write)}"
    if rule.required:
        return ["answer: calls", calls]
    if rule.content is not None:
        return ["answer: calls | content", calls]
    if form.bare:
        return ["answer: calls | PLAIN", calls, r"PLAIN: /([^\s{\[](.|\n)*)?/"]
    times = "*" if rule.parallel and not form.in_list else "?"
    return [
        f"answer: (opened called){times} TEXT",
        write.rule_up_to("opened", form.opening),
        f"called: {_called(form, rule.parallel, write)}",
    ]


def _calls(form: ToolFormat, parallel: bool, write: _Markers) -> str:
    """One call, or several, from the first marker to the last."""
    if not form.bare:
        one = f"{write.marker(form.opening)} {_called(form, parallel, write)}"
        between = '"\\n" ' if form.closing else ""
        return f"{one} ({between}{one})*" if parallel and not form.in_list else one
    if not parallel:
        return "call"
    return f'call ("{form.separator} " call)*' if form.separator else f"call | {_list(parallel)}"


def _called(form: ToolFormat, parallel: bool, write: _Markers) -> str:
    """The part of a call, or of a list of calls, that follows the opening marker."""
    if form.in_list:
        return _list(parallel)
    return f'"\\n" call "\\n" {write.marker(form.closing)}' if form.closing else "call"


def _list(parallel: bool) -> str:
    return '"[" call (", " call)* "]"' if parallel else '"[" call "]"'


def _call(form: ToolFormat, function: CallableFunction, write: _Markers) -> str:
    schema = _json_schema({"type": "object", **(function.schema or {})})
    if form.name_outside:
        return f"{json.dumps(function.name)} {write.marker(form.between)} %json {schema}"
    # Cut as JSON is cut where a schema is given, because the two may begin alike.
    name = json.dumps(function.name, ensure_ascii=False)
    beginning = ("{", '"name"', ": ", name, ", ", f'"{form.arguments}"', ": ")
    return f'{" ".join(map(json.dumps, beginning))} %json {schema} "}}"'


def _json_schema(schema: Any) -> str:
    return json.dumps({**schema, "x-guidance": _WRITTEN})
