"""OpenAI's responses and Anthropic's messages of the real model, through a real server and the makers' packages."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI
from pydantic import BaseModel

from tests.service.servers import PATIENCE

MODEL = "smollm2-135m-instruct"
QUESTION = "What is the capital of France?"
TURNS: Any = [{"role": "user", "content": QUESTION}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION: Any = {"type": "function", "name": "get_weather", "parameters": CITY, "strict": True}
TOOL: Any = {"name": "get_weather", "input_schema": CITY, "strict": True}
GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0}}
"""For the anthropic package, whose newer versions have no argument for it."""


class Animal(BaseModel):
    legs: int
    tame: bool


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", timeout=PATIENCE, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(url: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=url, api_key="none", timeout=PATIENCE, max_retries=0) as client:
        yield client


def test_a_response_is_the_answer_of_a_chat(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0}
    chat = client.chat.completions.create(**asked, messages=TURNS, max_tokens=30)
    whole = client.responses.create(**asked, input=QUESTION, max_output_tokens=30)
    assert "Paris" in whole.output_text
    assert whole.output_text == chat.choices[0].message.content
    assert whole.status == "completed"
    assert whole.usage
    assert chat.usage
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    with client.responses.stream(**asked, input=QUESTION, max_output_tokens=30) as stream:
        assert "".join(e.delta for e in stream if e.type == "response.output_text.delta") == whole.output_text
        assert stream.get_final_response().output_text == whole.output_text


def test_earlier_turns_come_with_a_response(client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, input=TURNS, temperature=0, max_output_tokens=30)
    turns = [*TURNS, *first.output, {"role": "user", "content": "Repeat that."}]
    again = client.responses.create(model=MODEL, input=turns, temperature=0, max_output_tokens=30)
    assert "Paris" in again.output_text


def test_a_response_is_parsed(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "How many legs has a cat, is it tame?", "text_format": Animal}
    assert isinstance(client.responses.parse(**asked, max_output_tokens=100).output_parsed, Animal)
    with client.responses.stream(**asked, max_output_tokens=100) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Animal)


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_calls_a_function(client: OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {"model": MODEL, "tools": [FUNCTION], "temperature": 0, "max_output_tokens": 60}
    forced = asked | {"input": TURNS, "tool_choice": "required", "parallel_tool_calls": False}
    if stream:
        with client.responses.stream(**forced) as events:
            response: Any = events.get_final_response()
    else:
        response = client.responses.create(**forced)
    [call] = response.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    jsonschema.validate(json.loads(call.arguments), CITY)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    turns = [*TURNS, *response.output, result]
    assert client.responses.create(**asked, input=turns, tool_choice="none").output_text


def test_what_is_stored_elsewhere_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model=MODEL, input="hi", previous_response_id="resp_1")
    with pytest.raises(openai.NotFoundError, match="does not store"):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError, match="does not store"):
        client.responses.delete("resp_1")


def test_a_message_is_the_answer_of_a_chat(client: OpenAI, claude: Anthropic) -> None:
    chat = client.chat.completions.create(
        model=MODEL, messages=[{"role": "system", "content": "Be brief."}, *TURNS], temperature=0, max_tokens=30
    )
    asked: dict[str, Any] = {"model": MODEL, "system": "Be brief.", "messages": TURNS}
    whole = claude.messages.create(**asked, max_tokens=30, **GREEDY)
    [block] = whole.content
    assert block.type == "text"
    assert block.text == chat.choices[0].message.content
    with claude.messages.stream(**asked, max_tokens=30, **GREEDY) as stream:
        assert "".join(stream.text_stream) == block.text
        assert stream.get_final_message().stop_reason == whole.stop_reason
    assert chat.usage
    assert claude.messages.count_tokens(**asked).input_tokens == chat.usage.prompt_tokens
    assert whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0) == chat.usage.prompt_tokens


def test_a_message_ends_at_a_sequence_or_goes_on(claude: Anthropic) -> None:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 20, **GREEDY}
    answer = claude.messages.create(**asked, messages=TURNS, stop_sequences=["Paris"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "Paris")
    begun = [*TURNS, {"role": "assistant", "content": "The capital of France is"}]
    [block] = claude.messages.create(**asked, messages=begun).content
    assert block.type == "text"
    assert block.text.startswith(" Paris")


def test_a_message_is_parsed(claude: Anthropic) -> None:
    question: Any = [{"role": "user", "content": "How many legs has a cat, is it tame?"}]
    answer = claude.messages.parse(model=MODEL, max_tokens=100, messages=question, output_format=Animal)
    assert isinstance(answer.parsed_output, Animal)


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_uses_a_tool(claude: Anthropic, stream: bool) -> None:
    asked: dict[str, Any] = {"model": MODEL, "tools": [TOOL], "max_tokens": 60, **GREEDY}
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    if stream:
        with claude.messages.stream(**asked, messages=TURNS, tool_choice=choice) as events:
            answer: Any = events.get_final_message()
    else:
        answer = claude.messages.create(**asked, messages=TURNS, tool_choice=choice)
    assert answer.stop_reason == "tool_use"
    [use] = answer.content
    jsonschema.validate(use.input, CITY)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "rain"}
    turns = [*TURNS, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert claude.messages.create(**asked, messages=turns, tool_choice={"type": "none"}).content[0].type == "text"


def test_errors_are_anthropics(claude: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="gpt-4"):
        claude.messages.create(model="gpt-4", messages=TURNS, max_tokens=5)
    image: Any = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\]\.type"):
        claude.messages.create(model=MODEL, messages=image, max_tokens=5)
