"""Structured output of the real model, through a real server and the openai package."""

import json
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import jsonschema
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.service.servers import PATIENCE

MODEL = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "Describe the city of Paris in JSON: name, country, population, landmarks."}]
CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "country": {"enum": ["France", "Spain"]},
        "population": {"type": "integer", "minimum": 1, "maximum": 99999999},
        "landmarks": {"type": "array", "items": {"$ref": "#/$defs/landmark"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "country", "population", "landmarks"],
    "additionalProperties": False,
    "$defs": {"landmark": {"type": "string", "pattern": "^[A-Z][a-z]{1,9}( [A-Z][a-z]{1,9})?$"}},
}
CITY_FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", timeout=PATIENCE, max_retries=0) as client:
        yield client


def ask(client: OpenAI, **fields: Any) -> Any:
    settings = {"model": MODEL, "messages": QUESTION, "max_tokens": 300, "temperature": 0.7, "seed": 1}
    return client.chat.completions.create(**(settings | fields))


def test_a_schema_is_kept_by_every_choice(client: OpenAI) -> None:
    answer = ask(client, response_format=CITY_FORMAT, n=2)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), CITY)
    assert answer.choices[0].message.content != answer.choices[1].message.content


def test_a_stream_gives_what_comes_unstreamed(client: OpenAI) -> None:
    whole = ask(client, response_format=CITY_FORMAT)
    chunks = list(ask(client, response_format=CITY_FORMAT, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_packages_parse(client: OpenAI) -> None:
    class Size(StrEnum):
        small = "small"
        large = "large"

    class Animal(BaseModel):
        legs: int
        size: Size
        tame: bool

    answer = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "How many legs has a cat, what size is it, is it tame?"}],
        response_format=Animal,
        max_tokens=200,
    )
    assert isinstance(answer.choices[0].message.parsed, Animal)


def test_json_mode_gives_an_object(client: OpenAI) -> None:
    answer = ask(client, response_format={"type": "json_object"}, temperature=0, max_tokens=60)
    content = answer.choices[0].message.content
    assert content.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)


@pytest.mark.parametrize(
    ("asked", "form"),
    [
        ({"regex": r"[0-9]{4}-[0-9]{2}-[0-9]{2}"}, r"[0-9]{4}-[0-9]{2}-[0-9]{2}"),
        ({"choice": ["Paris", "London", "서울 🙂"]}, "Paris|London|서울 🙂"),
        ({"grammar": 'root ::= "SELECT " name " FROM " name\nname ::= [a-z]{1,8}'}, "SELECT [a-z]+ FROM [a-z]+"),
        ({"grammar": 'start: "SELECT " NAME " FROM " NAME\nNAME: /[a-z]{1,8}/'}, "SELECT [a-z]+ FROM [a-z]+"),
        ({"json": '{"type": "integer", "minimum": 10, "maximum": 12}'}, "10|11|12"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_vllms_forms(client: OpenAI, asked: dict[str, Any], form: str) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="The answer is: ", max_tokens=60, seed=3, extra_body={"structured_outputs": asked}
    )
    assert answer.choices[0].finish_reason == "stop"
    assert re.fullmatch(form, answer.choices[0].text)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}}},
            "response_format.json_schema.schema",
        ),
        ({"extra_body": {"structured_outputs": {"regex": "(?=a)b"}}}, "structured_outputs.regex"),
        ({"extra_body": {"structured_outputs": {"grammar": "root ::= nothing"}}}, "structured_outputs.grammar"),
        ({"extra_body": {"structured_outputs": {"regex": "(a{1000}){1000}"}}}, "structured_outputs.regex"),
    ],
)
def test_what_cannot_be_followed_is_a_400(client: OpenAI, fields: dict[str, Any], param: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, stream=stream, **fields)
    assert refused.value.param == param
    assert refused.value.code == "invalid_grammar"
