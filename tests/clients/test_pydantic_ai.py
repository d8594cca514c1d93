"""pydantic-ai against a running server, through chats and through responses: `make clients`."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import Field
from pydantic_ai import Agent, NativeOutput, RunContext, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ToolReturnPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings
from question import ASKED, MODEL, URL, Weather

SETTINGS = ModelSettings(temperature=0, max_tokens=100, parallel_tool_calls=False)


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel], ids=["chat", "responses"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.param(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key="none"))


@pytest.mark.parametrize("form", [ToolOutput, NativeOutput])
def test_output_is_structured(model: Any, form: Any) -> None:
    result = Agent(model, output_type=form(Weather), model_settings=SETTINGS, retries=0).run_sync(ASKED)
    assert isinstance(result.output, Weather)


def test_a_stream_is_the_answer(model: Any) -> None:
    agent = Agent(model, model_settings=SETTINGS)
    whole = agent.run_sync(ASKED)
    stream = agent.run_stream_sync(ASKED)
    assert "".join(stream.stream_text(delta=True)) == whole.output
    assert stream.usage.output_tokens == whole.usage.output_tokens > 0


class ToolFirst(AbstractCapability[None]):
    """Has the first answer of a run call a tool, and the next one not."""

    def get_model_settings(self) -> Callable[[RunContext[None]], ModelSettings]:
        return lambda run: ModelSettings(tool_choice="required" if run.run_step == 1 else "none")


def test_a_tool_is_called_and_its_result_read(model: Any) -> None:
    agent = Agent(model, model_settings=SETTINGS, capabilities=[ToolFirst()], retries=0)
    asked = []

    @agent.tool_plain
    def get_weather(city: Annotated[str, Field(max_length=20)]) -> str:
        """The weather in a city."""
        asked.append(city)
        return "It rains."

    result = agent.run_sync(ASKED)
    assert len(asked) == 1
    assert result.output
    parts = [part for message in result.all_messages() for part in message.parts]
    assert [part.content for part in parts if isinstance(part, ToolReturnPart)] == ["It rains."]
