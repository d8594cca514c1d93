"""Publishes the prefix cache's events over ZeroMQ, as vLLM does, for any number of subscribers.

A message is three frames: the topic, the batch's sequence number as 8 bytes, big-endian, and the batch. A DEALER that
sends an empty frame and a sequence number to the replay endpoint gets the kept batches from there on, each as an empty
frame, its number and the batch, and at last the number -1 with an empty batch. (A REQ gets the first of them alone.)
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Self

import msgspec
import zmq

from service.engine.block_events import BlockEvent, EventForm, encoded

QUEUE_BATCHES = 10_000
"""Batches that may wait for the publisher's thread; further ones are dropped."""
SUBSCRIBER_BATCHES = 100_000
"""Batches that may wait for one slow subscriber; ZeroMQ drops further ones, for it alone."""
REPLAY_BATCHES = 10_000
REPLAY_BYTES = 2**26
"""Limits of the newest batches that are kept for replay: their number, and their bytes in all."""
END = (-1).to_bytes(8, "big", signed=True)
_QUEUE = "inproc://batches"

Socket = zmq.Socket[bytes]

logger = logging.getLogger(__name__)


class EventsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how events are published."""

    endpoint: str
    """ZeroMQ address. One with * or :: in it, or of ipc, is bound; another is connected to."""
    replay_endpoint: str | None = None
    """ZeroMQ address to bind for replays; None: there are none."""
    topic: str = ""
    form: EventForm = "map"


class EventPublisher:
    """Numbers batches and hands them to a thread that sends them. Nothing here waits for a subscriber.

    A batch that is dropped has used up its number, so that subscribers see that they missed one.
    """

    def __init__(self, config: EventsConfig) -> None:
        """Raises ValueError if an endpoint cannot be used."""
        self._form = config.form
        self._sequence = 0
        self._context = zmq.Context()
        self._context.linger = 0  # No socket waits for a subscriber at the end.
        try:
            self._queue = _socket(self._context, zmq.PUSH, QUEUE_BATCHES)
            self._queue.bind(_QUEUE)
            batches = _socket(self._context, zmq.PULL, 1)
            batches.connect(_QUEUE)
            subscribers = _publishing(self._context, config.endpoint)
            replays = _replaying(self._context, config.replay_endpoint)
        except ValueError:
            self._context.destroy()
            raise
        relay = _Relay(batches, subscribers, replays, config.topic.encode())
        self._thread = Thread(target=relay.run, name="event-publisher", daemon=True)
        self._thread.start()

    def publish(self, events: Sequence[BlockEvent]) -> bool:
        """Publish events as the next batch; False if it was dropped because the thread is far behind. Never waits."""
        number = self._sequence.to_bytes(8, "big")
        self._sequence += 1
        try:
            self._queue.send_multipart([number, encoded(events, time.time(), self._form)], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Stop publishing; batches that wait are lost."""
        self._queue.close()
        self._context.term()  # Ends the thread, and waits until it has closed its sockets.
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Relay:
    """The thread's side: passes batches on to subscribers, and keeps the newest for those who missed some."""

    def __init__(self, batches: Socket, subscribers: Socket, replays: Socket | None, topic: bytes) -> None:
        self._batches, self._subscribers, self._replays, self._topic = batches, subscribers, replays, topic
        self._kept: deque[tuple[bytes, bytes]] = deque()
        self._kept_bytes = 0

    def run(self) -> None:
        """Relay until the context ends."""
        poller = zmq.Poller()
        sockets = [socket for socket in (self._batches, self._replays) if socket is not None]
        for socket in sockets:
            poller.register(socket, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                if self._batches in ready:
                    self._pass_on(*self._batches.recv_multipart())
                if self._replays is not None and self._replays in ready:
                    self._replay(self._replays)
        except zmq.ContextTerminated:
            for socket in (*sockets, self._subscribers):
                socket.close()

    def _pass_on(self, number: bytes, batch: bytes) -> None:
        self._subscribers.send_multipart([self._topic, number, batch])
        if self._replays is None:
            return
        self._kept.append((number, batch))
        self._kept_bytes += len(batch)
        while len(self._kept) > REPLAY_BATCHES or self._kept_bytes > REPLAY_BYTES:
            self._kept_bytes -= len(self._kept.popleft()[1])

    def _replay(self, replays: Socket) -> None:
        """Answer one request for a replay."""
        client, *asked = replays.recv_multipart()
        if len(asked) != 2 or asked[0] or len(asked[1]) != 8:
            logger.warning("a request for a replay of events is not a sequence number of 8 bytes")
            return
        for number, batch in self._kept:
            if number >= asked[1]:  # Big-endian numbers are in the order of their bytes.
                replays.send_multipart([client, b"", number, batch])
        replays.send_multipart([client, b"", END, b""])


def _publishing(context: zmq.Context[Socket], endpoint: str) -> Socket:
    """The socket of subscribers. Which endpoints are bound is vLLM's rule, so that its configurations hold here."""
    socket = _socket(context, zmq.PUB, SUBSCRIBER_BATCHES)
    if "*" in endpoint or "::" in endpoint or endpoint.startswith("ipc://"):
        _use(socket, socket.bind, endpoint, "kv_events_endpoint")
    else:
        _use(socket, socket.connect, endpoint, "kv_events_endpoint")
    return socket


def _replaying(context: zmq.Context[Socket], endpoint: str | None) -> Socket | None:
    if endpoint is None:
        return None
    # Room for a whole replay: a ROUTER drops what is above its mark.
    socket = _socket(context, zmq.ROUTER, REPLAY_BATCHES + 1)
    _use(socket, socket.bind, endpoint, "kv_events_replay_endpoint")
    return socket


def _socket(context: zmq.Context[Socket], kind: int, mark: int) -> Socket:
    socket = context.socket(kind)
    socket.set_hwm(mark)
    return socket


def _use(socket: Socket, attach: Callable[[str], object], endpoint: str, setting: str) -> None:
    socket.ipv6 = "[" in endpoint
    try:
        attach(endpoint)
    except zmq.ZMQError as error:
        raise ValueError(f"{setting}: cannot use {endpoint}: {zmq.strerror(error.errno or 0)}") from None
