"""openai-agents against a running server, through responses, its default, and through chats: `make clients`."""

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from agents import (
    Agent,
    ModelSettings,
    Runner,
    function_tool,
    set_default_openai_api,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import Field
from question import ASKED, MODEL, URL, Weather

SETTINGS = ModelSettings(temperature=0, max_tokens=100, parallel_tool_calls=False)


@pytest.fixture(autouse=True, params=["responses", "chat_completions"])
def api(request: pytest.FixtureRequest) -> Iterator[str]:
    set_tracing_disabled(True)  # Traces would go to their maker.
    set_default_openai_client(AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0), use_for_tracing=False)
    set_default_openai_api(request.param)
    yield request.param
    set_default_openai_api("responses")


def test_a_stream_is_the_answer() -> None:
    agent = Agent(name="Clerk", model=MODEL, model_settings=SETTINGS)

    async def run() -> tuple[Any, list[str], Any]:
        whole = await Runner.run(agent, ASKED)
        stream = Runner.run_streamed(agent, ASKED)
        events = [event async for event in stream.stream_events() if event.type == "raw_response_event"]
        deltas = [event.data.delta for event in events if event.data.type == "response.output_text.delta"]
        return whole.final_output, deltas, stream.final_output

    whole, deltas, streamed = asyncio.run(run())
    assert whole
    assert "".join(deltas) == streamed == whole


def test_output_is_structured() -> None:
    agent = Agent(name="Clerk", model=MODEL, model_settings=SETTINGS, output_type=Weather)
    assert isinstance(asyncio.run(Runner.run(agent, ASKED)).final_output, Weather)


def test_a_tool_is_called() -> None:
    asked = []

    @function_tool
    def get_weather(city: Annotated[str, Field(max_length=20)], unit: Literal["celsius", "fahrenheit"]) -> str:
        """The weather in a city."""
        asked.append((city, unit))
        return "It rains."

    agent = Agent(
        name="Clerk",
        model=MODEL,
        model_settings=SETTINGS.resolve(ModelSettings(tool_choice="required")),
        tools=[get_weather],
        tool_use_behavior="stop_on_first_tool",
    )
    assert asyncio.run(Runner.run(agent, ASKED)).final_output == "It rains."
    assert len(asked) == 1
