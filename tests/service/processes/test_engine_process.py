import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import ANY

import msgspec
import pytest
import zmq

from model.sampling_params import SamplingParams
from service.engine.endpoint import endpoint
from service.engine.event_publisher import EventsConfig
from service.engine.messages import (
    Delta,
    EngineRequest,
    EngineStats,
    Failed,
    FromEngine,
    Ready,
    Report,
    Shutdown,
    Submit,
    ToEngine,
)
from service.engine.server import HEARTBEAT_SECONDS
from service.processes.engine_config import EngineConfig
from tests.service.engine.fake_loader import BLOCKS, HANG, ROOT, command, fake_config
from tests.service.engine.fakes import output_alone

PATIENCE = 60
"""Seconds; nothing here takes a fraction of it unless it is broken."""


class RawClient:
    """A client without any of the client's own code."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], directory: Path) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.probe_router = 1
        self.socket.rcvtimeo = PATIENCE * 1000
        self.socket.connect(endpoint(directory))

    def send(self, message: ToEngine) -> None:
        self.socket.send(msgspec.msgpack.encode(message))

    def receive(self) -> FromEngine:
        return msgspec.msgpack.decode(self.socket.recv(), type=FromEngine)

    def report(self) -> Report:
        message = self.receive()
        assert isinstance(message, Report)
        return message

    def stats_when(self, condition: Callable[[EngineStats], bool]) -> EngineStats:
        while not condition(stats := self.report().stats):
            pass
        return stats

    def completion(self, id: int) -> list[int]:
        """The tokens of a request; it is an error if deltas of any other arrive meanwhile."""
        deltas: list[Delta] = []
        while not deltas or deltas[-1].finish_reason is None:
            deltas += self.report().deltas
        assert {delta.id for delta in deltas} == {id}
        return [token for delta in deltas for token in delta.tokens]


class Engine:
    """An engine process, its directory, and the end of the lifeline that its parent holds."""

    def __init__(self, config: EngineConfig) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.clients: list[RawClient] = []
        self.directory = Path(mkdtemp())
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service.processes.engine_process", self.directory, msgspec.json.encode(config)],
            stdin=subprocess.PIPE,
        )

    def connect(self) -> RawClient:
        self.clients.append(RawClient(self.context, self.directory))
        return self.clients[-1]

    def ready_client(self) -> RawClient:
        client = self.connect()
        assert isinstance(client.receive(), Ready)
        return client

    def cut_lifeline(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def close(self) -> None:
        self.cut_lifeline()
        self.process.wait(PATIENCE)
        for client in self.clients:
            client.socket.close()
        self.context.term()


@pytest.fixture
def engine(config: EngineConfig) -> Iterator[Engine]:
    engine = Engine(config)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine for tests that leave it as it was."""
    script = tmp_path_factory.mktemp("shared") / "script"
    script.write_text("ok")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        engine = Engine(fake_config(script))
    yield engine
    engine.close()


PARAMS = SamplingParams(max_tokens=6)


def check_service(client: RawClient, id: int) -> None:
    client.send(Submit(id, EngineRequest([id, 2, 3], PARAMS)))
    assert client.completion(id) == output_alone([id, 2, 3], PARAMS)[0]


def test_a_request_is_served(shared: Engine) -> None:
    client = shared.connect()
    ready = client.receive()
    assert isinstance(ready, Ready)
    assert ready.limits.num_blocks == BLOCKS
    assert (ready.info.backend, ready.pid) == ("fake", shared.process.pid)
    check_service(client, 5)


def test_an_idle_engine_reports_again_and_again(shared: Engine) -> None:
    began = time.monotonic()
    client = shared.ready_client()
    assert [client.report().deltas for _ in range(3)] == [[], [], []]
    # The first report may answer the introduction; between the others the engine sleeps.
    assert time.monotonic() - began > 1.9 * HEARTBEAT_SECONDS


def test_each_client_gets_its_own_deltas_and_all_get_the_statistics(engine: Engine) -> None:
    first, second = engine.ready_client(), engine.ready_client()
    for id in range(4):
        (first, second)[id % 2].send(Submit(id, EngineRequest([id], SamplingParams(max_tokens=10))))
    for parity, client in enumerate((first, second)):
        deltas: list[Delta] = []
        while sum(delta.finish_reason is not None for delta in deltas) < 2:
            deltas += client.report().deltas
        assert {delta.id for delta in deltas} == {parity, parity + 2}
        assert client.stats_when(lambda stats: stats.totals.generated_tokens == 40).blocks_used == 0


def test_what_a_vanished_client_submitted_is_cancelled(engine: Engine, script: Path) -> None:
    command(script, "steps 2")
    stays, goes = engine.ready_client(), engine.ready_client()
    goes.send(Submit(1, EngineRequest([1], SamplingParams(max_tokens=1000))))
    assert goes.stats_when(lambda stats: stats.totals.steps == 2).blocks_used == 1
    goes.socket.close()
    command(script, "ok")
    freed = stays.stats_when(lambda stats: stats.blocks_used == 0)
    assert freed.running == freed.waiting == 0
    assert freed.totals.generated_tokens < 1000
    check_service(stays, 5)


MALFORMED = [
    b"\x00",
    b"\xff" * 1000,
    b"GET / HTTP/1.1\r\n\r\n",
    msgspec.msgpack.encode({"type": "Submit", "id": "1", "request": {"prompt": [1], "params": {"max_tokens": 1}}}),
    msgspec.msgpack.encode({"type": "Submit", "id": 1, "request": {"prompt": [1.5], "params": {"max_tokens": 1}}}),
    msgspec.msgpack.encode({"type": "Submit", "id": 1, "request": {"prompt": [1]}}),
    msgspec.msgpack.encode({"type": "Ready"}),
    msgspec.msgpack.encode(Submit(1, EngineRequest([1], PARAMS)))[:-3],
    msgspec.msgpack.encode(Submit(1, EngineRequest([1], PARAMS, "é"))).replace("é".encode(), b"\xff\xff"),
    b"\x82\xa4type\xa6Cancel\xa1x" + b"\x91" * 100_000 + b"\xc0",
]


def test_malformed_messages_are_dropped(shared: Engine) -> None:
    client = shared.ready_client()
    for payload in MALFORMED:
        client.socket.send(payload)
    client.socket.send_multipart([b"one", b"two"])
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(endpoint(shared.directory).removeprefix("ipc://"))
        stranger.sendall(b"not even this protocol" * 100)
    check_service(client, 5)


def test_the_prefix_cache_is_told_of(config: EngineConfig, tmp_path: Path) -> None:
    first = output_alone([5, 2, 3], PARAMS)[0][0]
    events = EventsConfig(endpoint=f"ipc://{tmp_path}/events", replay_endpoint=f"ipc://{tmp_path}/replay", form="array")
    engine = Engine(msgspec.structs.replace(config, events=events))
    client = engine.ready_client()
    check_service(client, 5)
    with zmq.Context() as context, context.socket(zmq.DEALER) as asking:
        asking.rcvtimeo = PATIENCE * 1000
        asking.connect(f"ipc://{tmp_path}/replay")
        told: list[list[object]] = []
        while len(told) < 2:  # Batches may still be on their way to the publisher's thread.
            told.clear()
            asking.send_multipart([b"", bytes(8)])
            while batch := asking.recv_multipart()[2]:
                told += msgspec.msgpack.decode(batch)[1]
        assert told[0] == ["AllBlocksCleared"]
        assert told[1][:5] == ["BlockStored", [ANY], None, [5, 2, 3, first], 4]
    client.send(Shutdown())
    assert engine.process.wait(PATIENCE) == 0
    engine.close()


def test_an_endpoint_that_cannot_be_used_is_refused_before_loading(config: EngineConfig, script: Path) -> None:
    command(script, "wait")
    engine = Engine(msgspec.structs.replace(config, events=EventsConfig(endpoint="ipc:///nowhere/at/all/*")))
    client = engine.connect()
    failed = client.receive()
    assert isinstance(failed, Failed)
    assert failed.message == "kv_events_endpoint: cannot use ipc:///nowhere/at/all/*: No such file or directory"
    client.send(Shutdown())
    engine.close()


def test_its_log_has_the_form_that_was_asked_for(config: EngineConfig, capfd: pytest.CaptureFixture[str]) -> None:
    engine = Engine(msgspec.structs.replace(config, log_format="json"))
    client = engine.ready_client()
    client.socket.send(b"\x00")
    check_service(client, 5)
    engine.close()
    (entry,) = map(json.loads, capfd.readouterr().err.splitlines())
    assert (entry["process"], entry["level"]) == ("engine", "warning")
    assert "malformed" in entry["message"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_whole_group_are_the_parents_to_judge(shared: Engine, number: signal.Signals) -> None:
    client = shared.ready_client()
    shared.process.send_signal(number)
    check_service(client, 5)


def test_shutdown_ends_the_process_with_requests_open(engine: Engine) -> None:
    client = engine.ready_client()
    client.send(Submit(1, EngineRequest([1], SamplingParams(max_tokens=1000))))
    client.send(Shutdown())
    assert engine.process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("order", "line"),
    [("refuse", "model.gguf is cut off after 12 bytes"), ("bug", "KeyError: 'blk.0.attn_q.weight'")],
)
def test_a_model_that_does_not_load_is_one_line(script: Path, config: EngineConfig, order: str, line: str) -> None:
    command(script, order)
    engine = Engine(config)
    try:
        clients = [engine.connect(), engine.connect()]
        assert [client.receive() for client in clients] == [Failed(line)] * 2
        clients[0].send(Shutdown())
        assert engine.process.wait(PATIENCE) == 0
    finally:
        engine.close()


@pytest.mark.parametrize("moment", ["loading", "idle", "stepping"])
def test_an_orphan_ends_and_leaves_nothing(script: Path, config: EngineConfig, moment: str) -> None:
    command(script, "wait" if moment == "loading" else "ok")
    engine = Engine(config)
    try:
        if moment == "stepping":
            engine.ready_client().send(Submit(1, EngineRequest([HANG], PARAMS)))
        elif moment == "idle":
            engine.ready_client()
        engine.cut_lifeline()
        assert engine.process.wait(PATIENCE) == 1
        assert not os.path.exists(engine.directory)
    finally:
        engine.close()
