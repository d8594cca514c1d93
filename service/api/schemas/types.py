"""Types of fields that several bodies share, and the checks that they are made of."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo
from pydantic_core import PydanticCustomError


def integral(value: Any) -> Any:
    """An integral float as an int (8.0 as 8), and any other value as it is.

    JSON does not tell them apart, and some clients have only floats.
    """
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _all_integral(values: Any) -> Any:
    if isinstance(values, list) and float in set(map(type, values)):
        return [integral(value) for value in values]
    return values


Integer = Annotated[int, BeforeValidator(integral)]
"""A whole number, also when written as 8.0."""


def _shape(value: Any) -> str | None:
    """The tag of a union's member, from the type of the value, and for a list from its first item."""
    match value:
        case str():
            return "<text>"
        case [list(), *_]:
            return "<token lists>"
        case [int() | float(), *_]:
            return "<tokens>"
        case list():
            return "<list>"
        case dict():
            return "<object>"
    return None


def choose(description: str) -> Discriminator:
    """The choice of a union's member by the value's own type; `description` says which values would fit."""
    return Discriminator(_shape, custom_error_type="shape", custom_error_message=f"should be {description}")


def supported(*kinds: str) -> BeforeValidator:
    """A check of an object's `type`: others than `kinds` are refused by name. An object may lack one."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and value.get("type") not in (None, *kinds):
            problem = f"is not supported by this server, which takes {', '.join(kinds)} here"
            raise PydanticCustomError("unsupported", problem, {"field": "type"})
        return value

    return BeforeValidator(check)


def at_most(most: int | str, items: str) -> BeforeValidator:
    """A bound on the length of a list or map, checked before its elements: a number, or the name of a setting.

    The settings are pydantic's validation context.
    """

    def check(value: Any, info: ValidationInfo) -> Any:
        bound = getattr(info.context, most) if isinstance(most, str) else most
        if isinstance(value, list | dict) and len(value) > bound:
            told = {"count": len(value), "items": items, "bound": bound}
            raise PydanticCustomError("many", "{count} {items} are more than the {bound} that this server allows", told)
        return value

    return BeforeValidator(check)


Integers = Annotated[list[int], Field(fail_fast=True), BeforeValidator(_all_integral)]
TokenIds = Annotated[Integers, at_most(2**20, "token ids")]
Label = Annotated[str, Field(max_length=512)]
"""A name of the client's own."""
Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(min_length=1, fail_fast=True), at_most("max_prompts", "prompts"), Tag("<list>")]
    | Annotated[TokenIds, Tag("<tokens>")]
    | Annotated[list[TokenIds], Field(fail_fast=True), at_most("max_prompts", "prompts"), Tag("<token lists>")],
    choose("a string, a list of strings, a list of token ids, or a list of such lists"),
]
