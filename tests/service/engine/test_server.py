from collections import defaultdict, deque
from itertools import count
from typing import Any, cast

import msgspec
import zmq

from model.sampling_params import SamplingParams
from service.engine.core import EngineCore
from service.engine.messages import (
    Delta,
    Drawn,
    EngineRequest,
    FromEngine,
    Ready,
    Report,
    RequestTimes,
    Shutdown,
    Submit,
)
from service.engine.server import HEARTBEAT_SECONDS, EngineServer
from tests.service.engine.fakes import FakeRunner, output_alone

DECODER = msgspec.msgpack.Decoder(FromEngine)


class Socket:
    """A ROUTER without a network."""

    def __init__(self) -> None:
        self.arrived: deque[tuple[bytes, bytes]] = deque()
        self.sent: list[tuple[bytes, FromEngine]] = []
        self.parts: list[bytes] = []

    def poll(self, timeout: int) -> bool:
        return bool(self.arrived)

    def recv_multipart(self) -> tuple[bytes, bytes]:
        return self.arrived.popleft()

    def send(self, part: bytes, flags: int = 0) -> None:
        self.parts.append(part)
        if not flags & zmq.SNDMORE:
            client, payload = self.parts
            self.sent.append((client, cast(FromEngine, DECODER.decode(payload))))
            self.parts = []


class StoppingCore(EngineCore):
    """An engine whose client stops it when it comes to rest."""

    socket: Socket

    def step(self) -> Report | None:
        report = super().step()
        if not self.has_work:
            self.socket.arrived.append((b"a", msgspec.msgpack.encode(Shutdown())))
        return report


def test_each_client_gets_the_news_of_its_own_requests() -> None:
    socket, runner = Socket(), FakeRunner(64, 4, lookahead=1)
    core = StoppingCore(runner, token_budget=64, max_running=8)
    core.socket = socket
    owners = {0: b"a", 1: b"b", 2: b"a", 3: b"b", 4: b"a"}
    for client in (b"a", b"b", b"keeper"):
        socket.arrived.append((client, b""))
    for id, client in owners.items():
        request = EngineRequest([id, 1], SamplingParams(max_tokens=4 + id))
        socket.arrived.append((client, msgspec.msgpack.encode(Submit(id, request))))
    ready = Ready(runner.limits, runner.info, 1)
    EngineServer(cast("zmq.Socket[bytes]", socket), lambda **_: core, ready).run()
    deltas: dict[tuple[bytes, int], list[Delta]] = defaultdict(list)
    for client, message in socket.sent:
        if isinstance(message, Report):
            for delta in message.deltas:
                deltas[client, delta.id].append(delta)
    assert set(deltas) == {(client, id) for id, client in owners.items()}
    for (_, id), mine in deltas.items():
        tokens = [token for delta in mine for token in delta.tokens]
        assert tokens == output_alone([id, 1], SamplingParams(max_tokens=4 + id))[0]
        assert [delta.finish_reason for delta in mine] == [None] * (3 + id) + ["length"]
    columns = [item for _, message in socket.sent if isinstance(message, Report) for item in message.news]
    assert any(isinstance(item, Drawn) and len(item.ids) > 1 for item in columns)


def test_a_client_without_news_gets_a_report_now_and_then() -> None:
    socket, runner = Socket(), FakeRunner(64, 4)
    core = StoppingCore(runner, token_budget=64, max_running=8)
    core.socket = socket
    for client in (b"a", b"keeper"):
        socket.arrived.append((client, b""))
    socket.arrived.append((b"a", msgspec.msgpack.encode(Submit(0, EngineRequest([1], SamplingParams(max_tokens=30))))))
    # A clock that goes on by a tenth of a heartbeat whenever it is read, which is twice or three times a step.
    ticks = count()
    ready = Ready(runner.limits, runner.info, 1)
    EngineServer(
        cast("zmq.Socket[bytes]", socket), lambda **_: core, ready, lambda: next(ticks) * HEARTBEAT_SECONDS / 10
    ).run()
    reports = [client for client, message in socket.sent if isinstance(message, Report)]
    assert reports.count(b"a") == 30
    assert 5 <= reports.count(b"keeper") <= 15


def test_columns_become_the_deltas_that_they_stand_for() -> None:
    drawn = Drawn([7, 8, 9], [70, 80, 90], [0, 16, 0], [1.0, 2.0, 3.0], [0.5, 0.25, 0.125], [4.0, 5.0, 6.0])
    first, second, _ = drawn.deltas()
    assert first == Delta(7, [70], None, times=RequestTimes(1.0, 0.5, 4.0))
    assert second == Delta(8, [80], None, cached_tokens=16, times=RequestTimes(2.0, 0.25, 5.0))
    assert drawn.at([2, 0]).deltas() == [drawn.deltas()[2], first]
    sent: Any = msgspec.msgpack.decode(msgspec.msgpack.encode(drawn), type=Drawn)
    assert sent == drawn
