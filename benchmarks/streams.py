"""Clients of streamed chats that only read: `python -m benchmarks.streams PORT REQUESTS TOKENS`."""

import json
import socket
import sys
from selectors import EVENT_READ, DefaultSelector


def read_streams(port: int, requests: int, tokens: int) -> None:
    """Be the clients: send so many requests for a streamed chat and read until the server closes."""
    body = json.dumps(
        {
            "model": "measured",
            "messages": [{"role": "user", "content": "Count."}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    selector = DefaultSelector()
    for _ in range(requests):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(head + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        selector.register(connection, EVENT_READ)
    while selector.get_map():
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            data = key.fileobj.recv(2**16)
            if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"refused: {data.decode()}")
            if not data:
                selector.unregister(key.fileobj)


if __name__ == "__main__":
    read_streams(*map(int, sys.argv[1:]))
