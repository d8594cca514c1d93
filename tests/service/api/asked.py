"""What several tests of fields ask for, and what comes of it."""

import json
import re
from typing import Any

from tests.service.api.fakes import Caller, events

TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "f"}}]
CALLED: dict[str, Any] = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


async def outcome(caller: Caller, route: str, fields: dict[str, Any]) -> tuple[Any, ...]:
    """All that a request leads to, in the engine and for the client, but for ids and times."""
    before = len(caller.engine.streams)
    response = await caller.http.post(route, json={"seed": 1} | fields)
    assert response.status_code == 200, response.text
    streams = [(s.prompt, s.params, s.cache_salt, s.grammar) for s in caller.engine.streams[before:]]
    whole = re.sub("call_[0-9a-f]{24}", "call", response.text)
    answers = events(response)[:-1] if fields.get("stream") else [json.loads(whole)]
    return streams, [answer | {"id": "", "created": 0} for answer in answers]


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
