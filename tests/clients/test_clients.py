"""Client libraries, unchanged, against a running server: `make clients`. They have an environment of their own."""

from typing import Literal

import instructor
import pytest
from langchain_openai import ChatOpenAI
from openai import OpenAI
from question import ASKED, MODEL, URL, Weather


@pytest.fixture
def langchain() -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{URL}/v1", api_key="none", model=MODEL, temperature=0, max_completion_tokens=80)


def test_langchain_answers_and_streams(langchain: ChatOpenAI) -> None:
    answer = langchain.invoke("Say hello.")
    assert "".join(str(chunk.content) for chunk in langchain.stream("Say hello.")) == answer.content


def test_langchain_calls_a_tool(langchain: ChatOpenAI) -> None:
    [call] = langchain.bind_tools([Weather], tool_choice="Weather").invoke(ASKED).tool_calls
    assert call["name"] == "Weather"
    assert isinstance(Weather.model_validate(call["args"]), Weather)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structures_output(langchain: ChatOpenAI, method: Literal["json_schema", "function_calling"]) -> None:
    assert isinstance(langchain.with_structured_output(Weather, method=method).invoke(ASKED), Weather)


def test_langchain_asks_for_json(langchain: ChatOpenAI) -> None:
    """In this method the prompt has to say what the object should be, which a small model may not follow."""
    asked = f"{ASKED} Answer with a JSON object of a city and a unit."
    assert isinstance(langchain.with_structured_output(None, method="json_mode").invoke(asked), dict)


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_instructor(mode: instructor.Mode) -> None:
    client = instructor.from_openai(OpenAI(base_url=f"{URL}/v1", api_key="none"), mode=mode)
    messages = [{"role": "user", "content": ASKED}]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, response_model=Weather, max_tokens=80, temperature=0, max_retries=0
    )
    assert isinstance(answer, Weather)
