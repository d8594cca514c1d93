"""A server with nothing but OpenAI's chat API, in a thread: it streams as many tokens as it is asked for."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FIELDS = {"model", "messages", "prompt", "max_tokens", "stream", "stream_options"}


class FakeServer(ThreadingHTTPServer):
    """Counts what it is asked for. Options make it strict, or make it fail."""

    daemon_threads = True
    request_queue_size = 100

    def __init__(self, **options: Any) -> None:
        super().__init__(("127.0.0.1", options.get("port", 0)), Handler)
        self.options = options
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        """Of the completions it streamed, in turn."""
        self.connections = 0
        self.models: list[str] = options.get("models", ["fake-model"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A client that leaves is part of the tests."""

    def prompt_tokens(self, body: dict[str, Any]) -> int:
        text = body.get("prompt") or " ".join(message["content"] for message in body["messages"])
        return len(text.split())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.removeprefix(self.server.options.get("prefix", ""))
        if not self._admitted():
            return
        match path:
            case "/v1/models":
                self._json(200, {"object": "list", "data": [{"id": name} for name in self.server.models]})
            case "/metrics" if "metrics" in self.server.options:
                self._answer(200, self.server.options["metrics"].encode(), "text/plain")
            case _:
                self._json(404, {"error": {"message": f"no {path}"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._admitted():
            return
        if unknown := set(body) - FIELDS if self.server.options.get("strict") else set():
            self._json(400, {"error": {"message": f"unknown field {unknown.pop()}"}})
            return
        with self.server.lock:
            self.server.bodies.append(body)
            number = len(self.server.bodies)
        every = self.server.options.get("fails_every")
        if every and number % every == 0:
            self._json(503, {"error": {"message": "too busy"}})
            return
        self._stream(body)

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        tokens = body["max_tokens"]
        self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        for index in range(tokens):
            time.sleep(self.server.options.get("pace", 0.002))
            if index == self.server.options.get("dies_after"):
                self.close_connection = True
                return
            finish = "length" if index == tokens - 1 else None
            self._event({"choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": finish}]})
        cached = {"cached_tokens": self.server.options.get("cached", 0)}
        counts = {
            "prompt_tokens": self.server.prompt_tokens(body),
            "completion_tokens": tokens,
            "prompt_tokens_details": cached,
        }
        self._event({"choices": [], "usage": counts})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _admitted(self) -> bool:
        key = self.server.options.get("key")
        if key and self.headers.get("Authorization") != f"Bearer {key}":
            self._json(401, {"error": {"message": "no such key"}})
            return False
        return True

    def _json(self, status: int, body: dict[str, Any]) -> None:
        self._answer(status, json.dumps(body).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def fake_server(**options: Any) -> Iterator[FakeServer]:
    with FakeServer(**options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
