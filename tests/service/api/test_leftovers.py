"""Answers that come before the request's body has: the client reads them, and is not cut off for sending on."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.api import leftovers
from tests.service.api.fakes import Running, serving

KEY = "authorization: Bearer sesame\r\n"
JSON = "content-type: application/json\r\n"
PIECE = b" " * 2**16
LARGE = 128
"""Pieces of a body, more than sockets hold between the two sides."""

EARLY = [
    ("POST", "/v1/completions", KEY + JSON, 413),
    ("POST", "/tokenize", KEY + JSON, 413),
    ("POST", "/v1/completions", JSON, 401),
    ("POST", "/nowhere", KEY + JSON, 404),
    ("POST", "/v1/models", KEY + JSON, 405),
    ("GET", "/v1/completions", KEY, 405),
    ("POST", "/v1/completions", KEY + "content-type: text/plain\r\n", 415),
    ("POST", "/v1/completions", KEY + JSON + "content-encoding: gzip\r\n", 415),
    ("GET", "/v1/models", KEY, 200),
    ("GET", "/docs", KEY, 200),
    ("POST", "/v1/completions", KEY + JSON + "connection: close\r\n", 413),
]


def settings(**more: Any) -> dict[str, Any]:
    return {"api_keys": "sesame", "max_body": 100_000} | more


def pieces(chunked: bool, count: int) -> Iterator[bytes]:
    """The header that announces a body, an empty line, and the body."""
    yield b"transfer-encoding: chunked\r\n\r\n" if chunked else b"content-length: %d\r\n\r\n" % (count * len(PIECE))
    for _ in range(count):
        yield b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if chunked else PIECE
    if chunked:
        yield b"0\r\n\r\n"


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20)


def until_the_end(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


async def exchange(server: Running, talk: Callable[[socket.socket], bytes]) -> bytes:
    """What a client has from a conversation, in a thread of its own. A reset raises."""

    def converse() -> bytes:
        with connect(server) as connection:
            return talk(connection)

    return await asyncio.to_thread(converse)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize(("method", "path", "headers", "status"), EARLY)
async def test_a_client_that_first_sends_all_reads_its_answer(
    method: str, path: str, headers: str, status: int, chunked: bool
) -> None:
    def talk(connection: socket.socket) -> bytes:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}".encode())
        for piece in pieces(chunked, LARGE):
            connection.sendall(piece)
        return until_the_end(connection)

    async with serving(**settings()) as server:
        head, _, body = (await exchange(server, talk)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert head.lower().count(b"\r\nconnection: close") == 1
        assert b"content-length: %d" % len(body) in head.lower()
        if status != 200:
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


async def test_the_answer_does_not_wait_for_the_rest() -> None:
    def talk(connection: socket.socket) -> bytes:
        connection.sendall(f"POST /nowhere HTTP/1.1\r\nhost: x\r\n{KEY}content-length: 999999\r\n\r\nabc".encode())
        received = b""
        while not received.endswith(b"}}"):
            received += connection.recv(65536)
        return received

    async with serving(**settings()) as server:
        began = time.monotonic()
        assert b" 404 " in await exchange(server, talk)
        assert time.monotonic() - began < leftovers.LINGER_SECONDS / 2


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("bound", [{"LINGER_BYTES": 2**20}, {"LINGER_SECONDS": 0.2}])
async def test_nobody_is_listened_to_for_ever(
    bound: dict[str, Any], chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bound.items():
        monkeypatch.setattr(leftovers, name, value)
    endless = "LINGER_BYTES" in bound

    def talk(connection: socket.socket) -> bytes:
        connection.sendall(f"POST /nowhere HTTP/1.1\r\nhost: x\r\n{KEY}".encode())
        sent = 0
        try:
            for piece in pieces(chunked, 2**15 if endless else 2**10):
                connection.sendall(piece)
                sent += len(piece)
                if not endless and sent > 2**18:
                    until_the_end(connection)
                    break
        except ConnectionError:
            pass
        return b"%d" % sent

    async with serving(**settings()) as server:
        began = time.monotonic()
        sent = int(await exchange(server, talk))
        assert sent < 2**27
        assert endless or time.monotonic() - began < leftovers.LINGER_SECONDS + 3
        await server.until(lambda: not server.server.server_state.tasks)


async def test_a_short_body_does_not_cost_a_connection() -> None:
    def talk(connection: socket.socket) -> bytes:
        received = b""
        for _ in range(3):
            connection.sendall(
                f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{JSON}content-length: 1000\r\n\r\n".encode()
            )
            time.sleep(0.05)
            connection.sendall(b" " * 1000)
        connection.sendall(f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{KEY}connection: close\r\n\r\n".encode())
        return received + until_the_end(connection)

    async with serving(**settings()) as server:
        received = await exchange(server, talk)
        assert received.count(b"HTTP/1.1 401 ") == 3
        assert received.count(b"HTTP/1.1 200 ") == 1


@pytest.mark.parametrize(("headers", "status"), [(JSON, 401), (KEY + JSON, 413)])
async def test_who_waits_for_leave_to_send_is_told_without_it(headers: str, status: int) -> None:
    """Where the body was never asked for, the next bytes could be a body's or a request's: the connection ends."""

    def talk(connection: socket.socket) -> bytes:
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{headers}"
            "expect: 100-continue\r\ncontent-length: 200000\r\n\r\n".encode()
        )
        received = b""
        while not received.endswith(b"}}"):
            received += connection.recv(65536)
        return received

    async with serving(**settings()) as server:
        received = await exchange(server, talk)
        assert received.startswith(b"HTTP/1.1 %d " % status)
        assert b"connection: close" in received.lower()
        await server.until(lambda: not server.server.server_state.tasks)
