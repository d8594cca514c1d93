"""Batch invariance, which the shared server of the real model promises: an answer does not show what else ran."""

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.service.servers import PATIENCE

MODEL = "smollm2-135m-instruct"
CITY = {"type": "object", "properties": {"name": {"enum": ["Paris", "Lyon"]}}, "required": ["name"]}


@pytest.fixture
async def client(url: str) -> Any:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=PATIENCE, max_retries=0) as client:
        yield client


async def complete(client: AsyncOpenAI, **fields: Any) -> list[str]:
    answer = await client.completions.create(model=MODEL, **fields)
    return [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)]


async def test_sixteen_at_once_answer_as_each_alone(client: AsyncOpenAI) -> None:
    """Greedy and seeded alike."""
    subjects = ["rain", "bread", "the sea", "a clock", "Seoul", "chess", "iron", "owls"]
    requests = [
        {"prompt": f"A short text about {subject}:", "temperature": temperature, "seed": 11, "max_tokens": 12}
        for subject in subjects
        for temperature in (0, 0.9)
    ]
    together = await asyncio.gather(*(complete(client, **request) for request in requests))
    assert together == [await complete(client, **request) for request in requests]


async def test_n_gives_different_choices_and_a_seed_the_same_again(client: AsyncOpenAI) -> None:
    asked = {"prompt": "My favourite animal is", "n": 4, "seed": 7, "temperature": 1.2, "max_tokens": 16}
    first = await complete(client, **asked)
    assert len(set(first)) == 4
    assert await complete(client, **asked) == first


async def test_neighbours_of_other_kinds_change_nothing(client: AsyncOpenAI) -> None:
    """A schema, log-probabilities, penalties, and none of these."""
    asked: list[dict[str, Any]] = [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}},
        {"logprobs": True, "top_logprobs": 2, "max_tokens": 30},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5, "max_tokens": 30},
        {"max_tokens": 30},
    ]

    async def text(fields: dict[str, Any]) -> str:
        question: Any = [{"role": "user", "content": "Name a city in France, in JSON."}]
        settings: dict[str, Any] = {"max_tokens": 300, "temperature": 0.7, "seed": 1} | fields
        answer = await client.chat.completions.create(model=MODEL, messages=question, **settings)
        return str(answer.choices[0].message.content)

    alone = [await text(fields) for fields in asked]
    assert await asyncio.gather(*map(text, asked)) == alone
