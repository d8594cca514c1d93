"""An engine client's end of the socket. Knows nothing of requests, or of the engine's process."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from service.engine.endpoint import endpoint
from service.engine.messages import FromEngine, ToEngine

_READABLE = int(zmq.POLLIN)
"""Bit of a socket's events, as a plain number: those of an enumeration are compared in Python."""


class EngineChannel:
    """Carries messages to and from an engine. The code that opens a channel closes it."""

    def __init__(self, directory: Path, receive: Callable[[FromEngine], None]) -> None:
        """Connect to the engine that listens, now or later, in `directory`.

        `receive` is called on the event loop with each message, in order. Raises ZMQError.
        """
        self._receive = receive
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.linger = 0
        self._socket.probe_router = 1  # Introduces this client with an empty message.
        self._socket.connect(endpoint(directory))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._drain)

    def send(self, message: ToEngine) -> None:
        """Send a message. Never blocks, and never drops a message while the engine lives."""
        self._socket.send(msgspec.msgpack.encode(message))
        # The socket's descriptor signals changes only, and sending may have consumed the signal for a received message.
        self._drain()

    def mute(self) -> None:
        """Stop receiving; sending still works."""
        self._loop.remove_reader(self._socket.fileno())
        self._receive = lambda message: None

    def close(self) -> None:
        """Stop receiving and sending; the messages sent last may be lost."""
        self.mute()
        self._socket.close()
        self._context.term()

    def _drain(self) -> None:
        """Hand over every message that has arrived."""
        while not self._socket.closed and self._has_message:
            self._receive(self._decoder.decode(self._socket.recv(zmq.NOBLOCK)))

    @property
    def _has_message(self) -> bool:
        """Whether a message has arrived; receiving none would raise an exception, once for nearly every token."""
        events = self._socket.getsockopt(zmq.EVENTS)
        return isinstance(events, int) and events & _READABLE != 0
