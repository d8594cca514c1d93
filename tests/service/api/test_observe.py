"""Names of requests, and the log line that each leaves behind."""

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.api import errors
from service.engine.messages import Delta
from service.observability.logs import JsonLines
from tests.service.api.fakes import Caller, calling, serving

SECRET = "xyzzy-plugh"


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What the requests so far have logged."""
    return [record.fields for record in caplog.records if record.name == "service.api.observe"]  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


async def test_errors_need_no_observer() -> None:
    app = FastAPI()
    errors.install(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as http:
        response = await http.get("/nowhere")
    assert (response.status_code, response.json()["error"]["message"]) == (404, "There is no such route.")
    assert response.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_goes_by_its_own_id(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with calling() as caller:
        response = await caller.chat(stream=stream)
        body = response.text.split("\n\n")[0].removeprefix("data: ")
        (line,) = lines(caplog)
        assert response.headers["x-request-id"] == json.loads(body)["id"] == line["request_id"]
        assert "client_request_id" not in line


async def test_a_plain_id_of_the_client_is_echoed_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with calling() as caller:
        response = await caller.http.post(
            "/v1/completions", json={"prompt": "hi"}, headers={"X-Request-ID": "trip-7.a"}
        )
        assert response.headers.get_list("x-request-id") == ["trip-7.a"]
        (line,) = lines(caplog)
        assert line["client_request_id"] == "trip-7.a"
        assert line["request_id"] == response.json()["id"]


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, "<script>", "a;b", "é".encode().decode("latin-1")])
async def test_any_other_id_is_not(given: str, caplog: pytest.LogCaptureFixture) -> None:
    async with calling() as caller:
        headers = [(b"x-request-id", given.encode("latin-1"))]
        response = await caller.http.get("/v1/models", headers=headers)
        assert response.headers["x-request-id"].startswith("req-")
        (line,) = lines(caplog)
        assert line["request_id"] == response.headers["x-request-id"]
        assert "client_request_id" not in line


async def test_what_a_completion_says(caplog: pytest.LogCaptureFixture) -> None:
    async with calling() as caller:
        caller.engine.cached_tokens = 2
        response = await caller.complete(prompt=["hi", "you"], n=2, max_tokens=13, stream=False)
        (line,) = lines(caplog)
        usage = response.json()["usage"]
        assert line["prompt_tokens"] == usage["prompt_tokens"] == 3 + 4
        assert line["completion_tokens"] == usage["completion_tokens"] == 4 * 13
        assert line["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"] == 4
        assert (line["completions"], line["stream"], line["finish_reason"]) == (4, False, "stop")
        assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/completions", 200)
        assert (line["queue_seconds"], line["prefill_seconds"], line["decode_seconds"]) == (0.25, 0.5, 2.0)
        assert 0 < line["first_token_seconds"] <= line["duration_seconds"] < 10
        assert "error" not in line


async def test_each_request_is_one_line_and_probes_are_none(caplog: pytest.LogCaptureFixture) -> None:
    async with calling() as caller:
        for path in ("/health", "/ready", "/metrics", "/nowhere", "/v1/models"):
            await caller.http.get(path)
        assert [(line.get("route"), line["status"]) for line in lines(caplog)] == [(None, 404), ("/v1/models", 200)]
        caplog.set_level(logging.DEBUG)
        await caller.http.get("/health")
        assert lines(caplog)[-1]["route"] == "/health"


async def test_what_went_wrong_is_named(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(max_running=1, max_waiting=0) as server:
        await server.complete(max_tokens=100_000)
        with server.admission.admit(1):
            await server.complete(stream=True)
        server.engine.failure = Delta(0, [], None, finish_reason="error", error="hung")
        await server.complete()
        with monkeypatch.context() as patch:
            patch.setattr(server.engine, "submit", None)
            response = await server.http.post(
                "/v1/completions", json={"prompt": "hi"}, headers={"X-Request-Id": "mine"}
            )
        assert response.headers["x-request-id"] == "mine"
        assert [(line["status"], line.get("error"), line.get("finish_reason")) for line in lines(caplog)] == [
            (400, "context_length_exceeded", None),
            (429, "queue_full", None),
            (500, "engine_error", "error"),
            (500, "internal_error", None),
        ]


async def test_who_leaves_is_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        server.engine.running.clear()
        task = asyncio.create_task(server.complete())
        await server.until(lambda: server.engine.streams)
        task.cancel()
        await server.until(lambda: lines(caplog))
        (line,) = lines(caplog)
        assert (line["status"], line["finish_reason"], line["completion_tokens"]) == (499, "abort", 0)


async def ask_everywhere(caller: Caller) -> None:
    """The secret in every place where a client can put a text, in requests that are answered and refused."""
    body = {"messages": [{"role": "user", "content": SECRET}], "stop": [SECRET], "user": SECRET, "cache_salt": SECRET}
    for change in ({}, {"stream": True}, {"temperature": 9}, {SECRET: 1}, {"model": SECRET}, {"tools": SECRET}):
        await caller.http.post("/v1/chat/completions", json=body | change)
    await caller.http.post("/v1/completions", json={"prompt": SECRET, "logit_bias": {SECRET: 1}})
    await caller.http.post("/v1/completions", content=f'{{"prompt": "{SECRET}'.encode())
    await caller.http.post("/tokenize", json={"prompt": SECRET})
    await caller.http.get(f"/{SECRET}", headers={"X-Request-Id": f"{SECRET} x", "Authorization": f"Bearer {SECRET}"})


async def test_no_log_line_holds_a_text_of_the_client(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, "service")
    async with serving() as server:
        server.engine.text = SECRET.encode()
        await ask_everywhere(server)
        server.engine.failure = Delta(0, [], None, finish_reason="error", error="hung")
        await ask_everywhere(server)
        server.engine.failure = None
        monkeypatch.setattr(server.engine, "submit", None)
        await ask_everywhere(server)
    formatter = JsonLines("api")
    told = [formatter.format(record) for record in caplog.records if not record.name.startswith("httpx")]
    assert len(told) >= 3 * 10
    assert [line for line in told if SECRET in line] == []
