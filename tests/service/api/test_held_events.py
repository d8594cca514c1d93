"""Events of tokens that are here already are sent at once."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from service.api import answers
from service.engine.messages import Delta
from tests.service.api.fakes import TEMPLATE, build


async def bodies(ahead: bool, deltas: Sequence[Delta] = (), path: str = "/v1/completions") -> list[bytes]:
    """What the app hands to the server for a streamed completion, one entry for each time."""
    app, _, engine, _ = build(TEMPLATE, {})
    engine.ahead = ahead
    if deltas:
        engine.deltas = lambda *_: iter(deltas)  # type: ignore[method-assign]
    asked = json.dumps({"prompt": "hi", "stream": True, "n": 1}).encode()
    sent: list[bytes] = []

    async def receive() -> dict[str, Any]:
        if not sent and not received:
            received.append(True)
            return {"type": "http.request", "body": asked}
        await never.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and message["body"]:
            sent.append(message["body"])

    received: list[bool] = []
    never = asyncio.Event()
    headers = [(b"content-type", b"application/json"), (b"host", b"app")]
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": headers, "scheme": "http", "server": ("app", 80), "client": ("here", 1),
    }  # fmt: skip
    await app(scope, receive, send)
    return sent


def texts(sent: Sequence[bytes]) -> list[str]:
    events = [line.removeprefix("data: ") for line in b"".join(sent).decode().split("\n\n")][:-2]
    return [choice["text"] for event in events for choice in json.loads(event).get("choices", ())]


async def test_events_that_are_here_are_sent_at_once() -> None:
    behind, on_time = await bodies(True), await bodies(False)
    assert texts(behind) == texts(on_time)
    assert len(on_time) > 10
    assert len(behind) == 2  # All of the text, and the end.


async def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_HELD", 500)
    assert 2 < len(await bodies(True)) < len(await bodies(False))


async def test_what_is_held_is_sent_before_a_failure() -> None:
    deltas = [Delta(1, [104], None), Delta(1, [105], None), Delta(1, [], None, finish_reason="lost", error="gone")]
    told, failed = await bodies(True, deltas)
    assert texts([told, b"data: [DONE]\n\n"]) == ["h", "i"]
    assert b"error" in failed
