"""Events over real sockets, read as routers do it."""

import socket as sockets
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import msgspec
import pytest
import zmq

from model.sampling_params import SamplingParams
from service.engine import event_publisher
from service.engine.block_events import BlockRemoved, BlockStored
from service.engine.core import EngineCore
from service.engine.event_publisher import END, EventPublisher, EventsConfig
from service.engine.messages import EngineRequest, Submit
from tests.service.engine.fakes import FakeRunner

PATIENCE = 10_000
"""Milliseconds."""
Context = zmq.Context[zmq.Socket[bytes]]


@pytest.fixture
def context() -> Iterator[Context]:
    with zmq.Context() as made:
        made.linger = 0
        made.rcvtimeo = PATIENCE
        yield made


@pytest.fixture
def config(tmp_path: Path) -> EventsConfig:
    return EventsConfig(
        endpoint=f"ipc://{tmp_path}/events", replay_endpoint=f"ipc://{tmp_path}/replay", topic="kv@here@model"
    )


def subscribed(context: Context, endpoint: str, topic: bytes = b"kv@") -> zmq.Socket[bytes]:
    subscriber = context.socket(zmq.SUB)
    subscriber.subscribe(topic)
    subscriber.connect(endpoint)
    return subscriber


def seen(subscriber: zmq.Socket[bytes], publisher: EventPublisher) -> int:
    """Publish until a subscriber, which has just connected, gets a batch; returns the number of the newest."""
    number = -1
    while not subscriber.poll(20):
        assert publisher.publish([BlockRemoved([1])])
        number += 1
    while subscriber.recv_multipart()[1] != number.to_bytes(8, "big"):
        pass
    return number


def replayed(context: Context, config: EventsConfig, start: int) -> list[tuple[int, object]]:
    """The kept batches from a number on."""
    batches = []
    with context.socket(zmq.DEALER) as asking:
        assert config.replay_endpoint
        asking.connect(config.replay_endpoint)
        asking.send_multipart([b"", start.to_bytes(8, "big")])
        while True:
            delimiter, number, batch = asking.recv_multipart()
            assert delimiter == b""
            if number == END:
                assert batch == b""
                return batches
            batches.append((int.from_bytes(number, "big"), msgspec.msgpack.decode(batch)[1]))


def test_a_subscriber_gets_every_batch_in_three_frames(context: Context, config: EventsConfig) -> None:
    with EventPublisher(config) as publisher, subscribed(context, config.endpoint) as subscriber:
        number = seen(subscriber, publisher)
        before = time.time()
        publisher.publish([BlockStored([5], None, [1, 2], 2, extra_keys=[None])])
        topic, sequence, batch = subscriber.recv_multipart()
        assert (topic, sequence) == (b"kv@here@model", (number + 1).to_bytes(8, "big"))
        moment, (event,), rank = msgspec.msgpack.decode(batch)
        assert before <= moment <= time.time()
        assert (event["type"], event["block_hashes"], rank) == ("BlockStored", [5], 0)


def test_a_topic_that_nobody_subscribed_to_is_not_sent(context: Context, config: EventsConfig) -> None:
    with (
        EventPublisher(config) as publisher,
        subscribed(context, config.endpoint) as subscriber,
        subscribed(context, config.endpoint, b"other") as other,
    ):
        seen(subscriber, publisher)
        assert not other.poll(0)


def test_what_a_subscriber_missed_can_be_replayed(context: Context, config: EventsConfig) -> None:
    with EventPublisher(config) as publisher:
        for number in range(5):
            publisher.publish([BlockRemoved([number])])
        while len(batches := replayed(context, config, 2)) < 3:
            time.sleep(0.01)
        assert [(number, events[0]["block_hashes"]) for number, events in batches] == [(2, [2]), (3, [3]), (4, [4])]
        assert replayed(context, config, 9) == []


def test_the_newest_batches_are_kept(context: Context, config: EventsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_publisher, "REPLAY_BATCHES", 3)
    with EventPublisher(config) as publisher:
        for number in range(8):
            publisher.publish([BlockRemoved([number])])
        while [number for number, _ in replayed(context, config, 0)] != [5, 6, 7]:
            time.sleep(0.01)


def test_kept_batches_are_bounded_in_bytes_too(
    context: Context, config: EventsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_publisher, "REPLAY_BYTES", 10_000)
    with EventPublisher(config) as publisher:
        for _ in range(9):
            publisher.publish([BlockRemoved([2**63] * 400)])
        while [number for number, _ in replayed(context, config, 0)] != [7, 8]:
            time.sleep(0.01)


@pytest.mark.parametrize("frames", [[b""], [b"", b"soon"], [b"12345678"], [b"", b"12345678", b""]])
def test_a_malformed_request_for_a_replay_harms_nobody(
    context: Context, config: EventsConfig, frames: list[bytes]
) -> None:
    with EventPublisher(config) as publisher, context.socket(zmq.DEALER) as asking:
        assert config.replay_endpoint
        asking.connect(config.replay_endpoint)
        asking.send_multipart(frames)
        publisher.publish([BlockRemoved([1])])
        while not replayed(context, config, 0):
            time.sleep(0.01)


def test_a_publisher_that_is_behind_drops_batches_and_never_waits(
    context: Context, config: EventsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_publisher, "QUEUE_BATCHES", 4)
    publisher = EventPublisher(config)
    released = Event()
    monkeypatch.setattr(event_publisher._Relay, "_pass_on", lambda *_: released.wait())
    with publisher:
        told = [publisher.publish([BlockRemoved([number])]) for number in range(100)]
        released.set()
        assert told[0]
        assert not told[-1]


def test_a_dropped_batch_leaves_a_gap(context: Context, config: EventsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_publisher, "QUEUE_BATCHES", 1)
    with EventPublisher(config) as publisher:
        told = [publisher.publish([BlockRemoved([number])]) for number in range(2000)]
        kept = {number for number, went in enumerate(told) if went}
        while {number for number, _ in replayed(context, config, 0)} != kept:
            time.sleep(0.01)


def test_a_subscriber_that_reads_nothing_holds_up_nobody(context: Context, config: EventsConfig) -> None:
    with EventPublisher(config) as publisher, subscribed(context, config.endpoint) as subscriber:
        seen(subscriber, publisher)
        began = time.monotonic()
        for _ in range(3000):
            publisher.publish([BlockRemoved([2**63] * 50)])
        assert time.monotonic() - began < 5


def test_an_endpoint_in_use_is_refused_in_one_line(config: EventsConfig) -> None:
    with sockets.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for changes in ({"endpoint": f"tcp://*:{port}"}, {"replay_endpoint": f"tcp://127.0.0.1:{port}"}):
            (name,) = changes
            with pytest.raises(ValueError, match=rf"^kv_events_{name}: cannot use tcp://.*: Address already in use$"):
                EventPublisher(msgspec.structs.replace(config, **changes))


def test_a_publisher_may_connect_to_its_subscriber(context: Context) -> None:
    """As a router that many replicas connect to."""
    with context.socket(zmq.SUB) as subscriber:
        port = subscriber.bind_to_random_port("tcp://127.0.0.1")
        subscriber.subscribe(b"")
        with EventPublisher(EventsConfig(endpoint=f"tcp://127.0.0.1:{port}")) as publisher:
            seen(subscriber, publisher)


def test_an_engine_tells_a_subscriber_what_can_be_found(context: Context, config: EventsConfig) -> None:
    with EventPublisher(config) as publisher:
        core = EngineCore(FakeRunner(8, 2), token_budget=8, max_running=4, publish=publisher.publish)
        core.submit(Submit(1, EngineRequest([1, 2, 3, 4, 5], SamplingParams(max_tokens=1))))
        while core.step():
            pass
        while not (batches := replayed(context, config, 0)):
            time.sleep(0.01)
        ((number, (cleared, stored)),) = batches
        assert (number, cleared["type"]) == (0, "AllBlocksCleared")
        assert (stored["token_ids"], stored["parent_block_hash"]) == ([1, 2, 3, 4], None)
        counters = core.stats().totals
        assert (counters.event_batches, counters.dropped_event_batches) == (1, 0)


def test_dropped_batches_are_counted() -> None:
    core = EngineCore(FakeRunner(8, 2), token_budget=8, max_running=4, publish=lambda events: False)
    core.submit(Submit(1, EngineRequest([1, 2, 3], SamplingParams(max_tokens=1))))
    while core.step():
        pass
    assert core.stats().totals.dropped_event_batches == core.stats().totals.event_batches == 1
