"""Bodies that no honest client sends: each is refused in OpenAI's form, and the next request is served."""

import asyncio
import gzip
import zlib

import pytest

from service.api.bodies import parse
from tests.service.api.fakes import calling, serving

ROUTES = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")

HOSTILE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"1",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"[" * 900 + b"]" * 900,
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "temperature": Infinity}',
    b'{"prompt": "a", "temperature": -Infinity}',
    b'{"prompt": "a", "temperature": 1e400}',
    b'{"prompt": "a", "max_tokens": 1' + b"0" * 400 + b"}",
    b'{"prompt": "a", "max_tokens": 1' + b"0" * 9000 + b"}",
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "\\udc00\\ud800"}',
    b'{"messages": [{"role": "user", "content": "\\ud83d"}]}',
    b'{"\\ud800": 1}',
    b'{"prompt": "a\\u0000b"}',
    b'{"prompt": "a\0b"}',
    b'{"prompt": "\xff\xfe"}',
    b'{"prompt": "\xed\xa0\x80"}',
    b'\xef\xbb\xbf{"prompt": "a"}',
    b'{"prompt": "a", "prompt": "b"}',
    b'{"prompt": "a", "stream_options": {"include_usage": true, "include_usage": false}}',
    b'{"prompt": "a"} {"prompt": "b"}',
    b"{'prompt': 'a'}",
    b'{"' + b"n" * 60_000 + b'": 1}',
    b'{"a\\r\\n\\u001b[31m": 1}',
]


@pytest.mark.parametrize("route", ROUTES)
async def test_hostile_bodies_are_refused(route: str) -> None:
    async with calling(max_body=2**20) as caller:
        for body in HOSTILE:
            response = await caller.http.post(route, content=body, headers={"content-type": "application/json"})
            assert response.status_code == 400, (body[:60], response.text)
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert len(error["message"]) < 300
            assert "Traceback" not in response.text
        assert (await caller.complete()).status_code == 200


def test_honest_text_is_left_as_it_is() -> None:
    assert parse(b'{"a": "\\ud83d\\ude00 \\u00e9 \\\\u0000", "b": [1.5, 2, null]}') == {
        "a": "😀 é \\u0000",
        "b": [1.5, 2, None],
    }


async def test_only_json_is_taken() -> None:
    async with calling() as caller:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
            response = await caller.http.post(
                "/v1/completions", content=b'{"prompt": "a"}', headers={"content-type": kind}
            )
            assert response.status_code == 415
            assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("route", ROUTES)
async def test_what_says_that_it_is_written_or_packed_otherwise_is_not_read(route: str) -> None:
    """By a header, or by its first bytes: the alternative is to take it for broken JSON, or for other text."""
    text = '{"prompt": "é"}'
    plain, json = text.encode(), "application/json"
    packed: list[tuple[bytes, dict[str, str]]] = [
        (text.encode("latin-1"), {"content-type": f"{json}; charset=latin-1"}),
        (plain, {"content-type": f"{json}; v=1; charset = 'x'"}),
        (plain, {"content-type": f'{json}; charset="iso-8859-1"'}),
        (plain, {"content-type": f"{json}; charset="}),
        (text.encode("utf-16"), {"content-type": f"{json}; charset=utf-16"}),
        *((text.encode(f"utf-{width}"), {"content-type": json}) for width in ("16", "16-le", "16-be", "32", "32-le")),
        (plain, {"content-type": f"{json}, text/plain"}),
        (gzip.compress(plain), {"content-type": json, "content-encoding": "gzip"}),
        (zlib.compress(plain), {"content-type": json, "content-encoding": "deflate"}),
        (plain, {"content-type": json, "content-encoding": "identity, br"}),
        (gzip.compress(plain), {"content-type": json, "transfer-encoding": "gzip, chunked"}),
    ]
    async with calling() as caller:
        for body, headers in packed:
            response = await caller.http.post(route, content=body, headers=headers)
            assert response.status_code == 415, (headers, response.text)
            assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/json"},
        {"content-type": "Application/JSON; charset=utf-8"},
        {"content-type": 'application/json;charset="UTF-8"'},
        {"content-type": "application/json; charset=us-ascii; v=1"},
        {"content-type": "application/json", "content-encoding": "identity"},
        {"content-type": "application/json", "content-encoding": ""},
    ],
)
async def test_what_says_that_it_is_plain_json_is_read(headers: dict[str, str]) -> None:
    async with calling() as caller:
        response = await caller.http.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers)
        assert response.status_code == 200


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_refused_while_it_comes(announced: bool) -> None:
    headers = {"content-type": "application/json"} | ({"content-length": "100000000"} if announced else {})
    async with serving(max_body=200_000) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        lines = [f"{name}: {value}" for name, value in headers.items()]
        lines += ["host: x"] + ([] if announced else ["transfer-encoding: chunked"])
        writer.write(("POST /v1/completions HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
        if not announced:
            for _ in range(3):
                writer.write(b"%x\r\n" % 100_000 + b" " * 100_000 + b"\r\n")
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)
        assert b" 413 " in answer
        writer.close()
        assert (await server.complete()).status_code == 200


async def test_endless_headers_are_refused() -> None:
    async with serving() as server:
        response = await server.http.get("/health", headers={f"x-{i}": "y" * 1000 for i in range(80)})
        assert (response.status_code, response.reason_phrase) == (431, "Request Header Fields Too Large")
        assert response.json()["error"]["code"] == "headers_too_large"
        assert (await server.http.get("/" + "a" * 60_000, headers={"x": "y" * 10_000})).status_code == 431
        for headers in ({"x": "y" * 70_000}, {"y" * 70_000: "x"}):
            assert (await server.http.post("/v1/completions", headers=headers, json={})).status_code == 431
        assert (await server.http.get("/health")).status_code == 200


async def test_errors_have_one_form_everywhere() -> None:
    async with calling() as caller:
        for method, path, status in [
            ("GET", "/nowhere", 404),
            ("GET", "/v1/completions", 405),
            ("DELETE", "/v1/models", 405),
            ("GET", "/v1/models/other%00%1b[31m", 404),
        ]:
            response = await caller.http.request(method, path)
            assert response.status_code == status
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert response.json()["error"]["code"] == "model_not_found"
        response = await caller.complete(model="gpt-4")
        assert (response.status_code, response.json()["error"]["param"]) == (404, "model")


async def test_what_nobody_foresaw_is_not_told_to_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    async with calling() as caller:
        monkeypatch.setattr(caller.engine, "submit", lambda *_: 1 / 0)
        response = await caller.complete()
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "Internal error."
        response = await caller.complete(stream=True)
        assert response.status_code == 500
        assert "division" not in response.text
