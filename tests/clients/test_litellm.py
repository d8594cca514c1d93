"""litellm against a running server: `make clients`."""

import json
from typing import Any

import litellm
import pytest
from question import ASKED, MODEL, URL, Weather

TURNS = [{"role": "user", "content": ASKED}]
SERVER: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": "none", "max_retries": 0}
GREEDY: dict[str, Any] = SERVER | {"temperature": 0, "max_tokens": 100}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": Weather.model_json_schema()}}


def test_a_stream_is_the_answer() -> None:
    whole = litellm.completion(**GREEDY, messages=TURNS)
    chunks = [*litellm.completion(**GREEDY, messages=TURNS, stream=True, stream_options={"include_usage": True})]
    built = litellm.stream_chunk_builder(chunks, messages=TURNS)
    assert whole.choices[0].message.content
    assert built.choices[0].message.content == whole.choices[0].message.content
    assert built.choices[0].finish_reason == whole.choices[0].finish_reason
    assert built.usage.completion_tokens == whole.usage.completion_tokens
    assert built.usage.prompt_tokens == whole.usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=["required", "named"]
)
def test_a_tool_is_called_and_its_result_read(choice: Any, stream: bool) -> None:
    asked = GREEDY | {"tools": [TOOL], "parallel_tool_calls": False}
    answer = litellm.completion(**asked, messages=TURNS, tool_choice=choice, stream=stream)
    if stream:
        answer = litellm.stream_chunk_builder([*answer], messages=TURNS)
    [call] = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    Weather.model_validate(json.loads(call.function.arguments))
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    turns = [*TURNS, answer.choices[0].message.model_dump(exclude_none=True), result]
    assert litellm.completion(**asked, messages=turns, tool_choice="none").choices[0].message.content


def test_output_is_structured() -> None:
    answer = litellm.completion(**GREEDY, messages=TURNS, response_format=Weather)
    Weather.model_validate_json(answer.choices[0].message.content)


def test_responses_texts_and_embeddings() -> None:
    response = litellm.responses(**SERVER, input=ASKED, temperature=0, max_output_tokens=100)
    chat = litellm.completion(**GREEDY, messages=TURNS)
    assert response.output[0].content[0].text == chat.choices[0].message.content
    text = SERVER | {"model": f"text-completion-openai/{MODEL}"}
    assert "Paris" in litellm.text_completion(**text, prompt="The capital of France is", max_tokens=5).choices[0].text
    [one, two] = litellm.embedding(**SERVER, input=["a cat", "a clock"]).data
    assert len(one["embedding"]) == len(two["embedding"]) > 0


def test_what_is_refused_is_named() -> None:
    with pytest.raises(litellm.BadRequestError, match="colour"):
        litellm.completion(**GREEDY, messages=TURNS, extra_body={"colour": "red"})
    with pytest.raises(litellm.NotFoundError, match="gpt-4"):
        litellm.completion(**GREEDY | {"model": "openai/gpt-4"}, messages=TURNS)
