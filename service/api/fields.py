"""Fields of a request without an effect: refused by name, or named to the client as ignored."""

import re
from collections.abc import Iterator
from typing import Any

from service.api.errors import path_of, refusal
from service.api.schemas.body import Body
from service.api.schemas.chat import ChatBody
from service.api.schemas.idle import HINTS, asks_for_nothing
from service.api.schemas.tokens import TokenizeBody
from service.text.interface import ChatTemplate

_MOST_NAMED = 16
_LONGEST_NAME = 64
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_.\[\]-]")

Location = tuple[str | int, ...]


def ignored_fields(body: Body, *, refuse_unknown: bool, template: ChatTemplate | None) -> list[str]:
    """The fields of a valid body that have no effect, as plain names for a header or a log.

    At most 16 names, of at most 64 characters each: unknown fields, hints that ask for something, and variables that
    the chat template doesn't read. Raises ApiError for an unknown field if `refuse_unknown`.
    """
    unknown = _unknown(body, ())
    if refuse_unknown and (first := next(unknown, None)):
        path = path_of(first)
        raise refusal(path, "unknown field", "unknown_parameter")
    locations: list[Location] = [(name,) for name in HINTS if not _idle(body, name)]
    if isinstance(body, ChatBody | TokenizeBody) and template is not None:
        read = template.variables
        locations += [location for location, _ in given_variables(body) if location[-1] not in read]
    locations += (location for _, location in zip(range(_MOST_NAMED), unknown, strict=False))
    return [_NOT_PLAIN.sub("?", path_of(location))[:_LONGEST_NAME] for location in locations[:_MOST_NAMED]]


def template_variables(body: ChatBody | TokenizeBody) -> dict[str, Any]:
    """Variables for the chat template, by name. Raises ApiError if the body gives one name two values."""
    variables: dict[str, Any] = {}
    for location, value in given_variables(body):
        name = str(location[-1])
        if variables.setdefault(name, value) != value:
            raise refusal(path_of(location), f"differs from {name}")
    return variables


def given_variables(body: ChatBody | TokenizeBody) -> Iterator[tuple[Location, Any]]:
    """The chat template's variables with their locations in the body; only those that the schema declares."""
    if body.reasoning_effort is not None:
        yield ("reasoning_effort",), body.reasoning_effort
    given = body.chat_template_kwargs
    for name in type(given).model_fields if given is not None else ():
        if (value := getattr(given, name)) is not None:
            yield ("chat_template_kwargs", name), value


def _idle(body: Body, name: str) -> bool:
    return asks_for_nothing(getattr(body, name, None), HINTS[name])


def _unknown(value: Any, location: Location) -> Iterator[Location]:
    """Locations of the fields that the schema doesn't declare."""
    match value:
        case Body():
            yield from ((*location, name) for name in value.model_extra or ())
            for name, inner in value:
                if isinstance(inner, Body | list):
                    yield from _unknown(inner, (*location, name))
        case [Body(), *_]:
            for index, item in enumerate(value):
                yield from _unknown(item, (*location, index))
