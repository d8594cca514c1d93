"""Requests and servers that end otherwise than planned: clients leave, the engine dies, the queue is full, a signal."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from service.engine.messages import Delta
from service.engine.status import EngineHealth
from tests.service.api.fakes import HI, MODEL, Running, serving

ROUTES = ("/v1/completions", "/v1/chat/completions")
DEAD = Delta(0, [], None, finish_reason="lost", error="the engine hung")


def body(route: str, **fields: Any) -> dict[str, Any]:
    return ({"messages": HI} if "chat" in route else {"prompt": "hi"}) | fields


async def begin(server: Running, route: str, **fields: Any) -> "asyncio.Task[httpx.Response]":
    """A request that is in the engine, which is paused."""
    server.engine.running.clear()
    before = len(server.engine.streams)
    task = asyncio.create_task(server.http.post(route, json=body(route, **fields)))
    await server.until(lambda: len(server.engine.streams) - before == fields.get("n", 1))
    return task


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
async def test_a_client_that_leaves_cancels_its_requests(route: str, stream: bool, n: int) -> None:
    async with serving() as server:
        task = await begin(server, route, stream=stream, n=n)
        assert not any(s.cancelled for s in server.engine.streams)
        task.cancel()
        await server.until(lambda: all(s.cancelled for s in server.engine.streams))
        await server.until(lambda: server.admission.open == 0)


async def test_a_client_that_leaves_in_the_middle_of_a_stream() -> None:
    async with serving() as server:
        fields = body(ROUTES[0], stream=True, ignore_eos=True, max_tokens=200)
        async with server.http.stream("POST", ROUTES[0], json=fields) as response:
            await anext(response.aiter_lines())
            server.engine.running.clear()
        await server.until(lambda: server.engine.streams[0].cancelled)


async def test_a_stop_string_frees_its_choice_while_others_go_on() -> None:
    async with serving() as server:
        task = await begin(server, ROUTES[0], stop="wor", n=2)
        first, second = server.engine.streams
        second.gate.clear()
        server.engine.running.set()
        await server.until(lambda: first.cancelled)
        assert not second.cancelled
        second.gate.set()
        assert [choice["text"] for choice in (await task).json()["choices"]] == ["Hello, ", "Hello, "]


async def test_a_reader_that_never_reads_holds_back_the_events() -> None:
    """And not the memory of the server: what it hasn't taken is not made."""
    async with serving(max_body=2**20) as server:
        server.engine.limits = replace(server.engine.limits, max_context=200_000, num_blocks=200_000)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]), limit=1024)
        fields = json.dumps(body(ROUTES[0], stream=True, ignore_eos=True, max_tokens=150_000, logprobs=20))
        head = f"POST {ROUTES[0]} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(fields)}\r\n\r\n{fields}".encode())
        await server.until(lambda: server.engine.streams)
        stream = server.engine.streams[0]
        taken = -1
        while taken != stream.taken:
            taken = stream.taken
            await asyncio.sleep(0.3)
        assert 0 < taken < 20_000
        writer.close()
        await server.until(lambda: stream.cancelled)
        del reader


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
async def test_an_engine_that_dies_before_the_first_token(route: str, stream: bool) -> None:
    async with serving() as server:
        server.engine.failure = DEAD
        response = await server.http.post(route, json=body(route, stream=stream))
        assert (response.status_code, response.headers["retry-after"]) == (503, "10")
        assert response.json()["error"]["type"] == "server_error"
        assert "the engine hung" in response.json()["error"]["message"]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("route", ROUTES)
async def test_an_engine_that_dies_in_a_stream(route: str, n: int) -> None:
    async with serving() as server:
        fields = body(route, stream=True, n=n, ignore_eos=True, max_tokens=200)
        async with server.http.stream("POST", route, json=fields) as response:
            lines = response.aiter_lines()
            await anext(lines)
            server.engine.failure = DEAD
            rest = [line async for line in lines if line]
        error = json.loads(rest[-1].removeprefix("data: "))["error"]
        assert error["code"] == "engine_unavailable"
        assert "[DONE]" not in rest[-1]
        assert server.admission.open == 0


async def test_the_openai_package_raises_when_a_stream_breaks() -> None:
    async with (
        serving() as server,
        AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as client,
    ):
        stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
        await anext(stream)
        server.engine.failure = DEAD
        with pytest.raises(openai.APIError, match="the engine hung"):
            async for _ in stream:
                pass


async def test_a_full_queue_is_answered_with_429() -> None:
    async with serving(max_running=1, max_waiting=1) as server:
        tasks = [await begin(server, ROUTES[0]), await begin(server, ROUTES[1], stream=True)]
        for stream in (False, True):
            response = await server.complete(stream=stream)
            assert response.status_code == 429
            assert response.headers["retry-after"] == "1"
            assert response.json()["error"]["code"] == "queue_full"
        server.engine.running.set()
        assert [(await task).status_code for task in tasks] == [200, 200]
        assert (await server.complete()).status_code == 200


async def test_a_request_gets_all_its_places_or_none() -> None:
    async with serving(max_running=2, max_waiting=1) as server:
        task = await begin(server, ROUTES[0], n=2)
        assert (await server.complete(n=2)).status_code == 429
        assert len(server.engine.streams) == 2
        server.engine.running.set()
        assert (await task).status_code == 200


@pytest.mark.parametrize(
    ("health", "alive", "ready", "completion"),
    [
        (EngineHealth("ready", ""), 200, 200, 200),
        (EngineHealth("starting", "the model is loading"), 200, 503, 503),
        (EngineHealth("dead", "killed by signal 9"), 503, 503, 503),
    ],
)
async def test_health_follows_the_engine(health: EngineHealth, alive: int, ready: int, completion: int) -> None:
    async with serving() as server:
        server.engine.state = health
        for path, status in {"/health": alive, "/ready": ready, "/ping": ready}.items():
            response = await server.http.get(path)
            assert (response.status_code, response.json()["reason"]) == (status, health.reason)
            assert ("retry-after" in response.headers) == (status == 503)
        response = await server.complete()
        assert response.status_code == completion
        assert ("retry-after" in response.headers) == (completion == 503)
        assert (await server.http.get("/v1/models")).status_code == 200
        assert (await server.http.get("/metrics")).status_code == 200


async def test_a_draining_server_finishes_what_it_has() -> None:
    async with serving() as server:
        task = await begin(server, ROUTES[0])
        server.server.drain()
        assert (await server.http.get("/ready")).json()["status"] == "draining"
        response = await server.http.get("/ready")
        assert (response.status_code, "retry-after" in response.headers) == (503, True)
        assert (await server.http.get("/health")).status_code == 200
        for route in ROUTES:
            response = await server.http.post(route, json=body(route))
            assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
            assert "retry-after" in response.headers
        assert not server.engine.stopped
        server.engine.running.set()
        assert (await task).json()["choices"][0]["text"] == "Hello, world"
        await asyncio.wait_for(server.task, 10)
        assert server.engine.stopped


@pytest.mark.parametrize("stream", [False, True])
async def test_draining_has_an_end_and_who_still_waits_is_told(stream: bool) -> None:
    async with serving(drain_seconds=0.2) as server:
        task = await begin(server, ROUTES[0], stream=stream)
        server.server.drain()
        await asyncio.wait_for(server.task, 10)
        assert server.engine.stopped
        response = await task
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
