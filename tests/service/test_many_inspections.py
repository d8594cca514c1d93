"""Many people look inside while others' completions stream: all are answered or refused, and nobody is held up."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service.servers import PATIENCE, save_dummy_llama, serving

STALL = 2.0
"""Seconds that the server's loop may be busy with one thing, on a machine that does much else."""
LOOKS: list[tuple[dict[str, Any], int]] = [
    ({"attention": "all"}, 200),
    ({"attention": "all", "reduction": "mean", "top_keys": 4}, 200),
    ({"attention": "all", "reduction": "rollout"}, 200),
    ({"lens": 20, "residual": True, "details": True, "spellings": True}, 200),
    ({"embedding": 20, "position_encoding": True, "distribution": 3, "positions": [5]}, 200),
    ({"attention": "all", "prompt": "a" * 1000}, 400),
    ({"lens": 20, "prompt": "a" * 1000}, 400),
]
"""Fields, with the status of the answer. A token is a byte; "all" are 8 heads."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("dummy")
    save_dummy_llama(folder, 2048)
    with serving(str(folder), "--load-format", "dummy", "--max-running", "16") as (url, _):
        yield url


async def decode(http: httpx.AsyncClient) -> int:
    """The number of tokens of a streamed completion."""
    body = {"prompt": "one two three", "max_tokens": 200, "ignore_eos": True, "stream": True, "return_token_ids": True}
    tokens = 0
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            tokens += line.startswith("data: {")
    return tokens


async def look(http: httpx.AsyncClient, fields: dict[str, Any], status: int) -> None:
    body = {"prompt": "a b" * 100} | fields
    answer = await http.post("/v1/inspect", json=body)
    assert answer.status_code == status, answer.text
    if status == 400:
        assert any(unit in answer.json()["error"]["message"] for unit in ("bytes", "rows"))


async def longest_wait(http: httpx.AsyncClient, done: asyncio.Event) -> float:
    """The longest time that the server took to say that it lives."""
    waits = []
    while not done.is_set():
        began = time.perf_counter()
        assert (await http.get("/health")).status_code == 200
        waits.append(time.perf_counter() - began)
        await asyncio.sleep(0.01)
    return max(waits)


async def test_twenty_look_inside_while_eight_decode(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=httpx.Limits(max_connections=40)) as http:
        done = asyncio.Event()
        waiting = asyncio.create_task(longest_wait(http, done))
        decoding = [asyncio.create_task(decode(http)) for _ in range(8)]
        await asyncio.gather(*(look(http, *LOOKS[person % len(LOOKS)]) for person in range(20)))
        tokens = await asyncio.gather(*decoding)
        done.set()
        assert await waiting < STALL
    assert min(tokens) >= 200


async def test_a_thousand_tokens_by_all_heads_are_refused_with_their_size(url: str) -> None:
    """Or served as a part: the heaviest keys of the mean over each layer's heads."""
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http:
        asked = {"prompt": "a" * 1000, "attention": "all"}
        refused = await http.post("/v1/inspect", json=asked)
        served = await http.post("/v1/inspect", json=asked | {"reduction": "mean", "top_keys": 8})
    tokens = len(served.json()["tokens"])
    assert refused.status_code == 400
    assert f"{4 * 8 * tokens**2} bytes, more than the {4 * 2**20}" in refused.json()["error"]["message"]
    assert served.json()["attention"]["shape"] == [2, tokens, 8]
