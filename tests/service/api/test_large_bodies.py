"""Bodies of the largest size, hostile and honest: each is answered while the event loop goes on, in little memory."""

import asyncio
import gc
import json
import resource
import time
from collections.abc import Iterator
from threading import Lock
from typing import Any

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import TypeAdapter

from service.api.bodies import parse
from service.api.errors import ApiError
from service.api.schemas.body import Body
from tests.service.api.fakes import HI, Caller, FakeTokenizer, build, calling
from tests.speed import slowness, turns_of_the_loop

SIZE = 4 * 2**20
LATE = 0.25
"""Seconds of this process that the loop may be kept by one body, on the machine of `tests.speed`."""
SECONDS = 2.0
"""Seconds of this process for all of an answer, threads included, on the machine of `tests.speed`."""
MEGABYTES = 400
TRIES = 3
"""Tries of a body that takes too long: another process that fills the CPU's caches slows this one as well."""

HONEST: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": HI},
    "/v1/embeddings": {"input": "hi"},
    "/v1/inspect": {"prompt": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": HI},
    "/v1/responses": {"input": "hi"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1]},
    **{key: {"queries": "hi", "documents": "hi"} for key in ("/v1/score", "/score")},
    **{key: {"query": "hi", "documents": ["hi"]} for key in ("/v1/rerank", "/v2/rerank", "/rerank")},
}

ITEMS: dict[str, bytes] = {
    "integers": b"1",
    "fractions": b"1.5",
    "texts": b'"a"',
    "lists": b"[]",
    "objects": b"{}",
    "messages": b'{"role":"user","content":"a"}',
    "parts": b'{"type":"text","text":"a"}',
    "messages of parts": b'{"role":"user","content":[' + b",".join([b'{"type":"text","text":"a"}'] * 50) + b"]}",
    "wrong messages": b'{"role":1,"content":[1,2],"x":1}',
    "digits": b"9" * 4000,
    "commas": b'"' + b"[{:," * 1000 + b'"',
}


SLOWLY_READ = {"list of fractions", "list of commas", "escaped text", "backslashes"}
"""Values of which nearly all time goes before a schema sees them, to which they are one more list or text."""


def repeated(item: bytes, first: bytes = b"") -> bytes:
    return b"[" + first + b",".join([item] * ((SIZE - 10_000) // (len(item) + 1))) + b"]"


def values() -> Iterator[tuple[str, bytes]]:
    """Values of nearly the largest size, to be put wherever a body has a value."""
    for name, item in ITEMS.items():
        yield f"list of {name}", repeated(item)
    # What a union is told apart by.
    yield "a text, then integers", repeated(b"1", b'"a",')
    yield "a list, then integers", repeated(b"1", b"[1],")
    yield "within the bound: a text, then integers", b'["a"' + b",1" * 1_040_000 + b"]"
    yield "within the bound: a list, then integers", b"[[1]" + b",1" * 1_040_000 + b"]"
    yield "within the bound: integers, then a text", b"[1" + b",1" * 1_040_000 + b',"a"]'
    yield "numbered names", b"{" + b",".join(b'"%d":1' % i for i in range(SIZE // 12)) + b"}"
    yield "names within the bound", b"{" + b",".join(b'"%d":1' % i for i in range(100_000)) + b"}"
    yield "tokens within the bound", b"[" + b",".join([b"1"] * 1_040_000) + b"]"
    yield "texts within the bound", b"[" + b",".join([b'"a"'] * 1_040_000) + b"]"
    yield "lists within the bound", b"[" + b",".join([b"[]"] * 32_000) + b"]"
    yield "messages within the bound", b"[" + b",".join([ITEMS["messages"]] * 4096) + b"]"
    yield "parts within the bound", b"[" + b",".join([ITEMS["messages of parts"]] * 500) + b"]"
    yield "long name", b'{"' + b"n" * (SIZE - 10_000) + b'":1}'
    yield "words", b'"' + b"is it, " * ((SIZE - 10_000) // 7) + b'"'
    yield "escaped text", b'"' + b"\\u00e9" * ((SIZE - 10_000) // 6) + b'"'
    yield "backslashes", b'"' + b"\\\\" * ((SIZE - 10_000) // 2) + b'"'
    yield "open text", b'"' * (SIZE - 10_000)
    yield "nesting", b"[" * (SIZE - 10_000)


@pytest.fixture(scope="module")
def large_values() -> list[tuple[str, bytes]]:
    return list(values())


@pytest.fixture(scope="module")
def read_values(large_values: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Those that come as far as a route's schema. The rest is refused whatever route and field it is for."""
    return [(name, value) for name, value in large_values if name not in SLOWLY_READ and is_read(value)]


def is_read(value: bytes) -> bool:
    try:
        parse(b'{"a":' + value + b"}")
    except ApiError:
        return False
    return True


def bodies_of(large: list[tuple[str, bytes]], path: str, field: str | None) -> Iterator[tuple[str, bytes]]:
    """The hostile values in one field of a body that is honest otherwise; in place of the body where it is None."""
    for name, value in large:
        if field is None:
            yield name, value
        else:
            honest = {key: item for key, item in HONEST[path].items() if key != field}
            start = json.dumps(honest).encode()[:-1] + (b"," if honest else b"")
            yield name, start + b'"' + field.encode() + b'":' + value + b"}"


def routes() -> dict[str, type[Body]]:
    """Every route that takes a body, and its schema."""
    app, *_ = build(None, {})
    found = [route.original_route for route in iter_route_contexts(app.routes)]
    return {
        route.path: route.body_field.field_info.annotation
        for route in found
        if isinstance(route, APIRoute) and route.body_field
    }


def holds_many(schema: dict[str, Any]) -> bool:
    return any(f'"type": "{kind}"' in json.dumps(schema) for kind in ("array", "object")) or "$ref" in str(schema)


def fields() -> list[tuple[str, str]]:
    """Every field that may hold a list, a map or an object."""
    found: dict[tuple[str, str], str] = {}
    for path, body in routes().items():
        for name, schema in TypeAdapter(body).json_schema()["properties"].items():
            if holds_many(schema):
                # Routes share fields; each has its turn once.
                found.setdefault((name, json.dumps(schema)), path)
    return [(path, name) for (name, _), path in found.items()]


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_every_route_is_known() -> None:
    assert set(routes()) == set(HONEST)


async def answered(caller: Caller, path: str, name: str, body: bytes) -> tuple[float, float]:
    """The seconds of this process that an answer takes, in all and between two turns of the loop."""
    turns: list[float] = []
    began = time.process_time()
    async with turns_of_the_loop(turns):
        response = await caller.http.post(path, content=body, headers={"content-type": "application/json"})
    spent = time.process_time() - began
    assert response.status_code in (200, 400), (name, response.text[:200])
    assert response.status_code == 200 or len(response.text) < 500
    return spent, max(turns)


@pytest.mark.parametrize("field", ["messages", "temperature", "nobody_knows", None])
async def test_a_body_of_the_largest_size_is_answered_at_once(
    field: str | None, large_values: list[tuple[str, bytes]]
) -> None:
    await check_answers("/v1/chat/completions", field, large_values)


@pytest.mark.parametrize(("path", "field"), fields())
async def test_a_field_of_the_largest_size_is_answered_at_once(
    path: str, field: str, read_values: list[tuple[str, bytes]]
) -> None:
    await check_answers(path, field, read_values)


async def check_answers(path: str, field: str | None, large: list[tuple[str, bytes]]) -> None:
    async with calling(max_body=SIZE) as caller:
        before = memory()
        # As the server does: what pytest holds is not its concern.
        gc.freeze()
        for name, body in bodies_of(large, path, field):
            assert len(body) <= SIZE
            for _ in range(TRIES):
                spent, longest = await answered(caller, path, name, body)
                if spent < SECONDS and longest < LATE:
                    break
            else:
                slower = slowness()
                assert spent < SECONDS * slower, (name, spent, slower)
                assert longest < LATE * slower, (name, longest, slower)
        assert memory() - before < MEGABYTES


LONG: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a" * 300_000},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a" * 300_000}]},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "a" * 300_000}]},
    "/v1/responses": {"input": "a" * 300_000},
    "/tokenize": {"prompt": "a" * 300_000},
    "/detokenize": {"tokens": [97] * 300_000},
}


@pytest.mark.parametrize("path", LONG)
async def test_long_texts_take_turns(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes many times its size in memory; texts of the usual size do not wait for them."""
    alone = Lock()
    inside: list[str] = []

    def slowly(work: str) -> Any:
        original = getattr(FakeTokenizer, work)

        def at_work(self: FakeTokenizer, value: Any, **options: Any) -> Any:
            if len(value) < 300_000:
                return original(self, value, **options)
            assert alone.acquire(blocking=False), "two at once"
            try:
                inside.append(work)
                time.sleep(0.1)
                return original(self, value, **options)
            finally:
                alone.release()

        return at_work

    monkeypatch.setattr(FakeTokenizer, "encode", slowly("encode"))
    monkeypatch.setattr(FakeTokenizer, "decode", slowly("decode"))
    async with calling(max_body=SIZE) as caller:
        answers = asyncio.gather(*[caller.http.post(path, json=LONG[path]) for _ in range(4)])
        while not inside:
            await asyncio.sleep(0.01)
        assert (await caller.http.post("/tokenize", json={"prompt": "a" * 100_000})).status_code == 200
        assert len(inside) < 4
        assert {answer.status_code for answer in await answers} <= {200, 400}
        assert len(inside) == 4
