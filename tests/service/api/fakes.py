"""A server whose engine says what a test wants, behind a real port."""

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import httpx
import msgspec
from fastapi import FastAPI

from model.array import Array
from model.checkpoint.sampling_defaults import NEUTRAL, SamplingDefaults
from model.contract import Wanted
from model.inspection import InspectionResult
from model.limits import ModelLimits, RunnerInfo
from model.sampling_params import SamplingParams
from model.token_logprobs import TokenLogprobs
from service.api.admission import Admission
from service.api.places import Places
from service.api.server import Server
from service.app import create_app
from service.engine.messages import Beam, BeamSearch, Delta, EngineRequest, EngineStats, RequestTimes
from service.engine.status import EngineDead, EngineHealth
from service.observability.metrics import Metrics
from service.served_model import ServedModel
from service.settings import Settings, listed
from service.text.chat import TemplateError
from service.text.fewest_tokens import TooLongError
from service.text.reasoning import ReasoningFormat
from service.text.spans import spans_of
from service.text.tools.formats import HERMES, ToolFormat

MODEL = "toy"
BOS, EOS = 256, 257
VOCAB_SIZE = 260
LIMITS = ModelLimits(
    vocab_size=VOCAB_SIZE, max_context=256, num_blocks=64, block_size=16, layers=3, heads=2, encoding_width=8
)
TIMES = RequestTimes(queue=0.25, prefill=0.5, decode=2.0)
"""What the engine tells of every request."""
SPECIAL = {BOS: "<s>", EOS: "</s>"}


class FakeTokenizer:
    """A token for each byte, and two special ones."""

    vocab_size = VOCAB_SIZE
    tokenizer_class = "FakeTokenizer"
    named_tokens: Mapping[str, str] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}
    special_texts = frozenset(SPECIAL.values())
    chat_template = "{{ messages }}"
    bos_token_id = BOS
    eos_token_ids = (EOS,)

    def encode(self, text: str, *, add_special_tokens: bool, parse_special: bool, most: int | None = None) -> list[int]:
        if most is not None and len(text) > most:
            raise TooLongError(len(text))
        tokens = [BOS] if add_special_tokens else []
        if parse_special:
            head, *rest = text.split("</s>")
            tokens += head.encode()
            for part in rest:
                tokens += [EOS, *part.encode()]
            return tokens
        return [*tokens, *text.encode()]

    def locate(
        self, text: str, *, add_special_tokens: bool, parse_special: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        tokens = self.encode(text, add_special_tokens=add_special_tokens, parse_special=parse_special)
        before = tokens[:1].count(BOS)
        return tokens, [(0, 0)] * before + spans_of(self, tokens[before:])

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else SPECIAL.get(token, "").encode()

    def is_special(self, token: int) -> bool:
        return token in SPECIAL

    def special_text(self, token: int) -> str | None:
        return SPECIAL.get(token)

    def spells_special(self, text: str) -> bool:
        return any(spelt in text for spelt in SPECIAL.values())

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True, continuation: bool = False) -> str:
        kept = [t for t in tokens if not (skip_special_tokens and self.is_special(t))]
        return b"".join(map(self.token_bytes, kept)).decode(errors="replace")


THINK = ReasoningFormat("<think>", "</think>")
TOLD = ("tool_calls", "tool_call_id", "reasoning_content")


class FakeTemplate:
    """role:content| for each message, then assistant: to be continued; names, variables and tools are told too."""

    variables = frozenset({"enable_thinking", "reasoning_effort", "thinking_budget"})

    def __init__(self, tool_format: ToolFormat | None = HERMES, reasoning: ReasoningFormat | None = THINK) -> None:
        self.tool_format, self.reasoning_format = tool_format, reasoning

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        most: int | None = None,
    ) -> list[int]:
        if messages[0]["content"] == "unsuitable":
            raise TemplateError("roles must alternate")
        text = "".join(f"{name}={value}|" for name, value in (variables or {}).items() if name in self.variables)
        text += "".join(json.dumps(tool, ensure_ascii=False) + "|" for tool in tools or ())
        for message in messages:
            text += f"{message['role']}{'@' * ('name' in message)}{message.get('name', '')}:{message['content']}|"
            text += "".join(f"{name}={message[name]}|" for name in TOLD if name in message)
        if continue_final_message:
            text = text.removesuffix("|")
        if add_generation_prompt:
            text += "assistant:"
        return FakeTokenizer().encode(text, add_special_tokens=False, parse_special=False, most=most)


TEMPLATE = FakeTemplate()
HI = [{"role": "user", "content": "hi"}]


class FakeStream:
    """Says its tokens, a delta each, and takes note of how it is left."""

    def __init__(
        self,
        client: "FakeClient",
        sent: EngineRequest,
        ended: Callable[[], object],
    ) -> None:
        self.prompt, self.params, self.cache_salt = sent.prompt, sent.params, sent.cache_salt
        self.caller, self.patience = sent.caller, sent.patience
        self.grammar, self.wanted, self.beams = sent.grammar, sent.wanted, sent.beams
        self._ended = ended
        self.finished = self.cancelled = False
        self.taken = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._client = client
        self._deltas = client.deltas(sent)

    @property
    def ahead(self) -> bool:
        return self._client.ahead

    def cancel(self) -> None:
        self.cancelled = self.cancelled or not self.finished
        self.end()

    def end(self) -> None:
        """The engine is done with it, however far its reader is."""
        ended, self._ended = self._ended, lambda: None
        ended()

    def __aiter__(self) -> "FakeStream":
        return self

    async def __anext__(self) -> Delta:
        await asyncio.sleep(0)
        await self._client.running.wait()
        await self.gate.wait()
        delta = self._client.failure or next(self._deltas)
        self.finished = delta.finish_reason is not None
        self.taken += 1
        return delta


class FakeClient:
    """Every request gets the same text; `running` pauses all of them while it is clear."""

    def __init__(self) -> None:
        self.limits = LIMITS
        self.stats = EngineStats()
        self.ahead = False
        """Whether its streams say that the next delta is here already."""
        self.restarts = 0
        self.info: RunnerInfo | None = RunnerInfo(device="cpu", dtype="float32", cache_dtype="float32", backend="fake")
        self.pid: int | None = os.getpid()
        self.state = EngineHealth("ready", "")
        self.streams: list[FakeStream] = []
        self.embedding = EMBEDDING
        self.scripted: Sequence[Delta] | None = None
        self.text: Sequence[int] = b"Hello, world"
        self.cached_tokens = 0
        self.failure: Delta | None = None
        self.running = asyncio.Event()
        self.running.set()
        self.stopped = False

    def health(self) -> EngineHealth:
        return self.state

    def submit(self, request: EngineRequest, ended: Callable[[], object] = lambda: None) -> FakeStream:
        if self.state.state != "ready":
            raise EngineDead("no engine")
        self.streams.append(FakeStream(self, request, ended))
        return self.streams[-1]

    def deltas(self, request: EngineRequest) -> Iterator[Delta]:
        """Whatever a test scripted, or else the news of the prompt and the text, or what a search finds."""
        beams, wanted, params = request.beams, request.wanted, request.params
        if beams is not None:
            return iter([Delta(0, [], None, "stop", beams=[fake_beam(beams, place) for place in range(beams.count)])])
        if self.scripted is not None:
            return iter(self.scripted)
        said = self.script(params)
        if wanted.inspect is not None and wanted.inspect.generated:
            said = (
                msgspec.structs.replace(delta, inspection=InspectionResult(positions=[place]))
                for place, delta in enumerate(said, len(request.prompt) - 1)
            )
        return chain(self.news_of_prompt(request.prompt, params, wanted), said)

    def news_of_prompt(self, prompt: list[int], params: SamplingParams, wanted: Wanted) -> Iterator[Delta]:
        """Two chunks of the prompt, if something is wanted of it, and the end if nothing is to be generated."""
        top = wanted.prompt_logprobs
        scores = [] if top is None else [fake_logprobs(token, top) for token in prompt[1:]]
        pooled = None if wanted.pooling is None else self.embedding
        if scores or pooled:
            yield Delta(0, [], None, scores=scores[:1], pooled=pooled, times=TIMES)
        if not params.max_tokens:
            yield Delta(0, [], None, "length", self.cached_tokens, scores=scores[1:], pooled=pooled, times=TIMES)
        elif scores[1:]:
            yield Delta(0, [], None, scores=scores[1:], times=TIMES)

    def script(self, params: SamplingParams) -> Iterator[Delta]:
        """The text again and again, until an end token is due or max_tokens are."""
        endless = EOS not in params.stop_token_ids
        count = 0
        while True:
            for token in self.text if endless else [*self.text, EOS]:
                count += 1
                reason = self._reason(token, count, params)
                logprobs = None if params.logprobs is None else [fake_logprobs(token, params.logprobs)]
                yield Delta(0, [token], logprobs, reason, self.cached_tokens, times=TIMES)

    def _reason(self, token: int, count: int, params: SamplingParams) -> Literal["stop", "length"] | None:
        if token in params.stop_token_ids:
            return "stop"
        return "length" if count == params.max_tokens else None

    def stop(self) -> None:
        self.stopped = True
        self.failure = Delta(0, [], None, finish_reason="lost", error="the engine was stopped")
        self.running.set()

    @property
    def params(self) -> SamplingParams:
        return self.streams[-1].params


EMBEDDING = Array((4,), struct.pack("<4f", 3, 0, 4, 0))


def fake_beam(search: BeamSearch, place: int) -> Beam:
    """A letter, longer ones for a penalty, and an end token."""
    tokens = [ord("a") + place] * round(search.length_penalty) + [ord("!")] * (search.early_stopping is True) + [EOS]
    top = search.logprobs
    return Beam(tokens, None if top is None else [fake_logprobs(token, top) for token in tokens], -1.0, "stop")


def fake_logprobs(token: int, count: int) -> TokenLogprobs:
    top = [(token + index) % 256 for index in range(count)]
    return TokenLogprobs(-0.5, top, [-0.5 - index for index in range(count)], 1)


@dataclass
class Caller:
    """An HTTP client of an app, and the app's engine."""

    http: httpx.AsyncClient
    engine: FakeClient
    admission: Admission

    async def complete(self, **fields: Any) -> httpx.Response:
        return await self.http.post("/v1/completions", json={"prompt": "hi"} | fields)

    async def chat(self, **fields: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json={"messages": HI} | fields)


@dataclass
class Running(Caller):
    """The same over a port."""

    url: str
    server: Server
    task: "asyncio.Task[None]"

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for the server to get somewhere."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)


def build(
    template: FakeTemplate | None,
    settings: dict[str, Any],
    sampling: SamplingDefaults = NEUTRAL,
    engine: FakeClient | None = None,
) -> tuple[FastAPI, Settings, FakeClient, Admission]:
    chosen = Settings(**({"max_running": 4, "max_waiting": 4, "max_body": 65536, "drain_seconds": 5} | settings))
    engine = engine or FakeClient()
    with TemporaryDirectory() as folder:
        places = Places(Path(folder) / "places", slot=0, slots=1)
    admission = Admission(chosen.max_open, places)
    names = listed(chosen.served_model_name) or (MODEL,)
    served = ServedModel(names, FakeTokenizer(), template, sampling)
    metrics = Metrics(engine, MODEL, vllm_names=chosen.vllm_metrics)
    app = create_app(chosen, served, engine, admission, metrics, started=0)
    return app, chosen, engine, admission


@asynccontextmanager
async def calling(
    template: FakeTemplate | None = TEMPLATE,
    sampling: SamplingDefaults = NEUTRAL,
    engine: FakeClient | None = None,
    **settings: Any,
) -> AsyncIterator[Caller]:
    """The app without a port: quick, and enough for whatever doesn't hang on connections."""
    app, _, engine, admission = build(template, settings, sampling, engine)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://app", timeout=10) as http:
        yield Caller(http, engine, admission)


@asynccontextmanager
async def serving(template: FakeTemplate | None = TEMPLATE, **settings: Any) -> AsyncIterator[Running]:
    """The app behind uvicorn on a port of its own."""
    app, chosen, engine, admission = build(template, settings)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = Server(app, chosen, admission, engine, alive=lambda: None)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        async with httpx.AsyncClient(base_url=url, timeout=10) as http:
            running = Running(http, engine, admission, url, server, task)
            await running.until(lambda: server.started)
            try:
                yield running
            finally:
                engine.running.set()
                server.should_exit = True
        await task


def events(response: httpx.Response) -> list[Any]:
    """The JSON of a stream's events; the last one, [DONE], as None."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    data = [block.removeprefix("data: ") for block in blocks]
    return [None if text == "[DONE]" else json.loads(text) for text in data]
