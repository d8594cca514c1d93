"""The objects that ask for text of a form: a JSON schema, a regular expression, a choice or a grammar."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from service.api.schemas.body import LABEL, Body
from service.api.schemas.types import at_most


def _of_types(*types: type) -> BeforeValidator:
    """A check for a schema, or null."""

    def check(value: Any) -> Any:
        if value is not None and not isinstance(value, types):
            raise PydanticCustomError("shape", "should be a JSON schema, which is an object, true or false")
        return value

    return BeforeValidator(check)


JsonSchema = Annotated[Any, _of_types(dict, bool), WithJsonSchema({"type": ["object", "boolean"]})]
WrittenSchema = Annotated[Any, _of_types(dict, bool, str), WithJsonSchema({"type": ["object", "boolean", "string"]})]


class NamedSchema(Body):
    """A JSON schema that the completion has to fit."""

    name: Annotated[str, Field(min_length=1, max_length=64)] = Field(description="A label of the client's own.")
    description: Annotated[str, Field(max_length=4096)] | None = Field(None, description=LABEL)
    schema_: JsonSchema = Field(None, alias="schema", description="Any JSON, if missing.")
    strict: bool | None = Field(None, description="The schema is enforced whatever this says.")


class ResponseFormat(Body):
    """OpenAI's way to ask for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = Field(None, description="With the type json_schema, and only with it.")


class StructuredOutputs(Body):
    """vLLM's way to ask for text of a form; exactly one of its fields says which."""

    json_: WrittenSchema = Field(None, alias="json", description="A JSON schema, as an object or as its text.")
    json_object: bool = Field(False, description="Any JSON object.")
    regex: str | None = Field(None, min_length=1, description="A regular expression that fits the whole completion.")
    choice: Annotated[list[str], Field(min_length=1, fail_fast=True), at_most("max_grammar", "texts")] | None = Field(
        None, description="The texts to choose from."
    )
    grammar: str | None = Field(None, min_length=1, description="A grammar in Lark's form, or in llama.cpp's GBNF.")
