"""The forms in which models write calls of functions, and the table that finds a model's form by its chat template."""

import uuid
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """The form of the calls in a model's text."""

    name: str
    opening: str = ""
    """Marker before a call, or before a list of calls; empty if there is none."""
    closing: str = ""
    """Marker after them; empty if there is none."""
    bare: bool = False
    """Whether JSON at the beginning of the text, or right after a call, is a call without a marker."""
    separator: str = ""
    """A character that may stand between calls without a marker."""
    arguments: str = "arguments"
    """The name that the arguments have in the JSON object of a call; the other usual one is understood as well."""
    name_outside: bool = False
    """Whether a call is its name and a JSON object of arguments, instead of one JSON object with both."""
    between: str = ""
    """Marker between a name and arguments outside of it; it may be missing."""
    in_list: bool = False
    """Whether several calls are written as one JSON list; lists are understood in other forms too."""
    short_ids: bool = False
    """Whether the template takes only ids of nine letters and digits."""
    markers: frozenset[str] = field(init=False)
    """All markers: they are seen by the reader of calls also where they are special tokens."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "markers", frozenset({self.opening, self.closing, self.between} - {""}))

    def new_id(self) -> str:
        """An id for a call."""
        return uuid.uuid4().hex[:9] if self.short_ids else f"call_{uuid.uuid4().hex[:24]}"


HERMES = ToolFormat(name="hermes", opening="<tool_call>", closing="</tool_call>")
LLAMA = ToolFormat(name="llama", opening="<|python_tag|>", bare=True, separator=";", arguments="parameters")
MISTRAL = ToolFormat(name="mistral", opening="[TOOL_CALLS]", in_list=True, short_ids=True)
MISTRAL_NAMED = ToolFormat(
    name="mistral-named", opening="[TOOL_CALLS]", name_outside=True, between="[ARGS]", short_ids=True
)
GENERIC = ToolFormat(name="json", bare=True, in_list=True)

_UNREADABLE = (
    *(
        "<function=",
        "<｜tool▁call",
        "<|tool_call_begin|>",
        "<|channel|>",
        "<tool▁call",
        "<arg_key>",
        "<minimax:tool_call>",
    ),
    *("<|tool_call>", "<start_function_call>", "functools[", "<|START_ACTION|>", "<function_calls>", "<tool_call|>"),
)
"""Marks of templates whose models write calls in other forms than those above."""

_TABLE: tuple[tuple[tuple[str, ...], ToolFormat], ...] = (
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL_NAMED),
    (("[TOOL_CALLS]",), MISTRAL),
    (("<tool_call>",), HERMES),
    (("<|python_tag|>",), LLAMA),
    (("<|eot_id|>", '"parameters": '), LLAMA),
)
"""Texts that are all in a template, and the form of its model's calls; the first row that fits holds."""


def format_of(source: str, variables: frozenset[str]) -> ToolFormat | None:
    """The form of the calls of the model with this chat template; None if it is known to be none of these.

    `variables` are the names that the template reads. A template that reads no tools gets the generic form: it is told
    of them by a system message.
    """
    if "tools" not in variables:
        return GENERIC
    if any(mark in source for mark in _UNREADABLE):
        return None
    return next((form for marks, form in _TABLE if all(mark in source for mark in marks)), GENERIC)
