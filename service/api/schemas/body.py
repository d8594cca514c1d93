"""The object that every part of a request is, and the labels and hints that requests of all routes may carry.

These models check the types of a request's fields, and the ranges that any server would hold them to. Ranges that
depend on the model or on the settings are checked in `service.api.requests`. The lengths of lists and maps are an
exception: they are checked here, before the elements, of which only the first fault is reported. A known field that an
object does not declare is refused here by name; `service.api.fields` decides about unknown ones.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from service.api.schemas.idle import DECLARED, UNSUPPORTED, asks_for_nothing
from service.api.schemas.types import Label

_MOST_FIELDS = 256
"""Fields of one object at most, far more than any client has use for."""


class Body(BaseModel):
    """An object of a request. Null means a field's default, and nothing where nobody knows the field.

    Types are never converted. Unknown fields are kept as the model's extras; `fields` decides what becomes of them.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)
    elsewhere: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields of other routes, each with the values that ask for what happens anyway."""

    @model_validator(mode="before")
    @classmethod
    def _drop_idle(cls, data: Any) -> Any:
        """Leave out fields that ask for nothing: nulls, and unsupported fields that ask for what happens anyway.

        An unsupported field that asks for something ends the validation of the object, because it says more than the
        further faults that it causes.
        """
        if not isinstance(data, dict):
            return data
        if len(data) > _MOST_FIELDS:
            raise PydanticCustomError("too_many_fields", f"has more than {_MOST_FIELDS} fields")
        kept = {}
        for name, value in data.items():
            if value is None:
                continue
            if name in cls.model_fields or not (name in UNSUPPORTED or name in DECLARED):
                kept[name] = value
            elif not asks_for_nothing(value, UNSUPPORTED.get(name, cls.elsewhere.get(name, ()))):
                problem = "is not supported by this server" if name in UNSUPPORTED else "does not belong here"
                raise PydanticCustomError("unsupported", problem, {"field": name})
        return kept

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(core_schema) | {"additionalProperties": False}


class CacheOptions(Body):
    """The client's wish for a prompt's time in the cache; here the other requests decide about that."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Annotated[str, Field(max_length=16)] | None = None


class CacheControl(Body):
    """The end of a prompt's reusable beginning, as the client sees it; here every shared beginning is found anyway."""

    type: Literal["ephemeral"] | None = None
    ttl: Annotated[str, Field(max_length=16)] | None = None


LABEL = "A label of the client's own; it changes nothing."
_IGNORED = "ignored, and named in the answer's X-Headlight-Ignored."


class Labels(Body):
    """A client's own labels, and hints. They change nothing in the answer."""

    user: Label | None = Field(None, description=LABEL)
    safety_identifier: Label | None = Field(None, description=LABEL)
    prompt_cache_key: Label | None = Field(None, description=f"{LABEL} `cache_salt` separates prefix caches.")
    session_id: Label | None = Field(None, description=LABEL)
    metadata: dict[Annotated[str, Field(max_length=64)], Label] | None = Field(
        None, max_length=16, description="Labels of the client's own; they change nothing."
    )
    store: bool | None = Field(None, description=f"Answers are never stored. True is {_IGNORED}")
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = Field(
        None, description=f"All requests have one tier. Any but auto and default is {_IGNORED}"
    )
    verbosity: Literal["low", "medium", "high"] | None = Field(
        None, description=f"The model decides. Any but medium is {_IGNORED}"
    )
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = Field(
        None, description=f"Cached prefixes stay until their memory is needed. 24h is {_IGNORED}"
    )
    prompt_cache_options: CacheOptions | None = Field(None, description=f"A caching hint, {_IGNORED}")
