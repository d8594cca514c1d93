"""An HTTP client for servers with OpenAI's API: lists models, streams an answer, reads metrics.

It uses gevent's sockets, so that thousands of users fit into a process. All routes and fields are OpenAI's own, except
the field ignore_eos; a trial request finds out whether the server knows it.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import urlsplit

from gevent import GreenletExit
from geventhttpclient.client import HTTPClient
from geventhttpclient.response import HTTPParseError

from loadtests.sse import Answer, Stream, StreamError

ROUTES = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
"""Kinds of requests, and their routes."""
API_KEY = "OPENAI_API_KEY"
"""The environment variable that holds the key, for servers that require one."""

_A = {"chat": "a chat", "completions": "a completion"}
_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 600.0
"""The longest wait for data. It is long, because a request may wait in a queue before its first byte."""


class ServerError(Exception):
    """No server answers, or its answer is not that of an OpenAI-compatible server. The message is one line."""


class Abandoned(GreenletExit):  # type: ignore[misc]
    """The test ended before an answer did. The argument is the unfinished Answer."""


class _Refused(ServerError):
    """The server refused a field, with status 400 or 422."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server, a model, and the fields that limit the length of a completion there."""

    url: str
    """The base URL, without /v1."""
    model: str
    max_context: int | None
    """The largest number of tokens of a prompt and its completion; None if /v1/models doesn't tell."""
    api: str = "chat"
    """A key of ROUTES."""
    limit_field: str = "max_tokens"
    """The field for the largest number of tokens of a completion."""
    ignore_eos: bool = False
    """Whether the server knows ignore_eos, with which completions always reach their limit."""

    @property
    def route(self) -> str:
        """The path that requests go to."""
        return ROUTES[self.api]

    def request(self, messages: list[dict[str, str]], max_tokens: int) -> dict[str, Any]:
        """The body of a request to the route. A completion continues the messages' texts, one after another."""
        if self.api == "chat":
            return self.chat(messages, max_tokens)
        return self.completion("\n".join(message["content"] for message in messages), max_tokens)

    def chat(self, messages: list[dict[str, str]], max_tokens: int) -> dict[str, Any]:
        """The body of a request for a streamed chat completion."""
        return self._body({"messages": messages}, max_tokens)

    def completion(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        """The body of a request for a streamed completion of a text."""
        return self._body({"prompt": prompt}, max_tokens)

    def _body(self, content: dict[str, Any], max_tokens: int) -> dict[str, Any]:
        extension = {"ignore_eos": True} if self.ignore_eos else {}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": self.model, self.limit_field: max_tokens} | content | stream | extension


class Client:
    """One user's connection to a server, kept open between requests. Greenlets must not share it."""

    def __init__(self, url: str) -> None:
        """A client for `url`, with or without /v1. Raises ServerError if `url` is no http or https URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"{url!r} is not the URL of a server, such as http://127.0.0.1:8000")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._path = urlsplit(self.url).path
        key = os.environ.get(API_KEY)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = HTTPClient.from_url(
            f"{parts.scheme}://{parts.netloc}",
            connection_timeout=_CONNECT_SECONDS,
            network_timeout=_SILENCE_SECONDS,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def get(self, path: str) -> bytes:
        """The body of the answer to a GET. Raises ServerError if there is no answer, or a status other than 200."""
        try:
            with self._http.request("GET", self._path + path, headers=self._headers) as response:
                body = response.read()
        except (OSError, HTTPParseError) as error:
            raise ServerError(f"no server answers at {self.url}: {error}") from None
        if response.status_code != 200:
            raise ServerError(f"{self.url}{path} answered {response.status_code}: {_reason(body)}")
        return body

    def stream(self, path: str, body: Mapping[str, Any]) -> tuple[Answer, str]:
        """Send a request and read its stream to the end; returns the Answer and its text.

        A failure does not raise, but is described in `Answer.error`. Raises Abandoned if this greenlet is killed
        meanwhile.
        """
        began, sent = time.time(), time.perf_counter()
        stream = Stream(sent)
        try:
            self._read(path, body, stream)
            answer = stream.answer(began, time.perf_counter())
        except GreenletExit:
            raise Abandoned(stream.broken(began, time.perf_counter(), None)) from None
        except (OSError, HTTPParseError, StreamError, ServerError) as error:
            name = "" if isinstance(error, StreamError | ServerError) else f"{type(error).__name__}: "
            answer = stream.broken(began, time.perf_counter(), f"{name}{error}")
        return answer, stream.text

    def _read(self, path: str, body: Mapping[str, Any], stream: Stream) -> None:
        headers = self._headers | {"Content-Type": "application/json", "Accept": "text/event-stream"}
        with self._http.request("POST", self._path + path, json.dumps(body), headers) as response:
            if response.status_code != 200:
                refusal = _Refused if response.status_code in (400, 422) else ServerError
                raise refusal(f"status {response.status_code}: {_reason(response.read())}")
            while line := response.readline(b"\n"):
                stream.feed(line, time.perf_counter())

    def discover(self, model: str | None = None, api: str = "chat") -> Target:
        """The target on this server: `model`, or the first one that it lists, with the fields that it accepts.

        Raises ServerError if the server doesn't have the model or doesn't answer a request to the `api`.
        """
        try:
            models = {entry["id"]: entry for entry in json.loads(self.get("/v1/models"))["data"]}
        except (ValueError, KeyError, TypeError):
            raise ServerError(f"{self.url}/v1/models does not answer as OpenAI's does") from None
        if not models or (model and model not in models):
            raise ServerError(
                f"{self.url} does not serve {model or 'any model'}; it lists {', '.join(models) or 'none'}"
            )
        name = model or next(iter(models))
        return self._try_fields(Target(self.url, name, models[name].get("max_model_len"), api))

    def _try_fields(self, plain: Target) -> Target:
        """`plain` with the first combination of fields that the server accepts; the most exact is tried first."""
        refusal = None
        for field, ignore_eos in (("max_tokens", True), ("max_tokens", False), ("max_completion_tokens", False)):
            target = replace(plain, limit_field=field, ignore_eos=ignore_eos)
            try:
                self._read(target.route, target.request([{"role": "user", "content": "Hello"}], 2), Stream(0))
            except _Refused as error:
                refusal = error
            except (OSError, HTTPParseError, StreamError, ServerError) as error:
                raise ServerError(f"{self.url} does not answer {_A[plain.api]}: {error}") from None
            else:
                return target
        raise ServerError(f"{self.url} does not answer {_A[plain.api]}: {refusal}")


def _reason(body: bytes) -> str:
    """The message in the body of an error, as one line of at most 200 characters."""
    try:
        content = json.loads(body)
        error = content.get("error", content)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        text = body.decode(errors="replace")
    return " ".join(text.split())[:200] or "no reason given"
