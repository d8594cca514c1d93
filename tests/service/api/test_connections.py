"""Clients that send nothing, or half, or take nothing, or come in crowds: they cannot keep the others out."""

import asyncio
import json
import socket
from dataclasses import replace

import pytest

from tests.service.api.fakes import Running, serving

HEAD = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def port(server: Running) -> int:
    return int(server.url.rpartition(":")[2])


async def never_reads(server: Running, **fields: object) -> socket.socket:
    """A client with a small buffer that asks for a long answer and takes nothing of it."""
    body = json.dumps({"prompt": "hi", "ignore_eos": True, "max_tokens": 100_000, "logprobs": 20, **fields})
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port(server)))
    await asyncio.get_running_loop().sock_sendall(client, f"{HEAD}content-length: {len(body)}\r\n\r\n{body}".encode())
    return client


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_takes_nothing_is_left(stream: bool) -> None:
    """The answer that is not streamed is long by its echo, so that the kernel's buffers cannot take all of it."""
    bounds = {"max_body": 2**24, "max_request_tokens": 2**24}
    async with serving(write_timeout=1, max_running=1, max_waiting=0, **bounds) as server:
        server.engine.limits = replace(server.engine.limits, max_context=2**24, num_blocks=2**20)
        fields = (
            {"stream": True}
            if stream
            else {"prompt": "a" * 12_000_000, "echo": True, "max_tokens": 1, "logprobs": None}
        )
        client = await never_reads(server, **fields)
        await server.until(lambda: server.engine.streams)
        await server.until(lambda: not server.server.server_state.connections)
        await server.until(lambda: server.admission.open == 0)
        assert (await server.complete()).status_code == 200
        client.close()


async def test_a_place_is_free_when_the_engine_is_done() -> None:
    """And not only when the client has read the answer."""
    async with serving(max_running=2, max_waiting=0) as server:
        server.engine.limits = replace(server.engine.limits, max_context=200_000, num_blocks=200_000)
        clients = [await never_reads(server, stream=True) for _ in range(2)]
        await server.until(lambda: len(server.engine.streams) == 2)
        assert (await server.complete()).status_code == 429
        for stream in server.engine.streams:
            stream.end()
        assert server.admission.open == 0
        assert (await server.complete()).status_code == 200
        for client in clients:
            client.close()
        await server.until(lambda: all(stream.cancelled for stream in server.engine.streams[:2]))
        assert server.admission.open == 0


BODY = b'content-length: 15\r\n\r\n{"prompt":'
UNFINISHED: list[tuple[bytes, bytes, bytes]] = [
    (b"", b"", b""),
    (b"POST /v1/comp", b"", b"408"),
    (HEAD.encode(), b"", b"408"),
    (HEAD.encode() + BODY, b"", b"408"),
    (HEAD.encode() + BODY, b" ", b"408"),
    (HEAD.encode() + b'transfer-encoding: chunked\r\n\r\n5\r\n{"pro\r\n', b"", b"408"),
    (b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\nGET /re", b"", b"408"),
]
"""Beginnings of requests, what still comes of them later, and what is in the answers."""


async def test_who_does_not_finish_a_request_is_closed() -> None:
    async def answer(sent: bytes, later: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port(server))
        writer.write(sent)
        if later:
            await asyncio.sleep(0.5)
            writer.write(later)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    async with serving(request_timeout=1) as server:
        answers = await asyncio.gather(*(answer(sent, later) for sent, later, _ in UNFINISHED))
        assert (await server.complete()).status_code == 200
    for answered, (sent, later, status) in zip(answers, UNFINISHED, strict=True):
        assert status in answered, (sent, later)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /ready HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431),
        (HEAD.encode() + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD.encode() + b"content-length: many\r\n\r\n", 400),
        (HEAD.encode() + b"transfer-encoding: chunked\r\n\r\nmany\r\n", 400),
    ],
)
async def test_what_is_not_http_is_refused_in_the_form_of_other_errors(sent: bytes, status: int) -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", port(server))
        writer.write(sent)
        head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
        assert (await server.complete()).status_code == 200
        writer.close()


async def test_connections_are_bounded() -> None:
    async with serving(max_connections=3) as server:
        silent = [await asyncio.open_connection("127.0.0.1", port(server)) for _ in range(3)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port(server))
        writer.write(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        assert b" 503 " in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
        for _, other in [*silent, (reader, writer)]:
            other.close()
        await server.until(lambda: not server.server.server_state.connections)
        assert (await server.http.get("/ready")).status_code == 200
