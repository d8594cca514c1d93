"""The parent's end of one engine process: its launch, the socket to it, and its certain end.

Knows nothing of requests, of health, or of restarts.
"""

import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import msgspec
import zmq

from service.engine.messages import FromEngine, Shutdown, ToEngine
from service.engine.process import EngineConfig, endpoint


class EngineChannel:
    """Messages to and from a running engine process."""

    def __init__(self, process: Process, socket: zmq.Socket[bytes], receive: Callable[[FromEngine], None]) -> None:
        """`socket` is a connected DEALER; `receive` is called on the event loop with each message, in order."""
        self._process = process
        self._socket = socket
        self._receive = receive
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)

    def send(self, message: ToEngine) -> None:
        """Never blocks, and never drops a message while the process lives."""
        self._socket.send(msgspec.msgpack.encode(message))
        # The socket's descriptor signals changes, and sending may have consumed one that was not acted on.
        self.drain()

    def drain(self) -> None:
        """Hand over every message that has arrived."""
        while True:
            try:
                payload = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._receive(self._decoder.decode(payload))

    async def exited(self) -> str:
        """Wait for the process to end; one line that says how it did."""
        code = await self._process.wait()
        return f"the engine exited with code {code}" if code >= 0 else f"the engine was killed by {_signal(-code)}"

    def kill(self) -> None:
        """End the process without asking."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def leave(self, grace_seconds: float) -> None:
        """Ask the process to end, make sure that it does, and reap it. What it still says is not received."""
        self._socket.send(msgspec.msgpack.encode(Shutdown()))
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._process.wait()
        self.kill()
        await self._process.wait()


@asynccontextmanager
async def launch(
    config: EngineConfig, receive: Callable[[FromEngine], None], grace_seconds: float
) -> AsyncIterator[EngineChannel]:
    """An engine process that lives no longer than this context. Raises OSError or ZMQError if it cannot start."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="headlight-", dir=_short_parent()))
        context = stack.enter_context(zmq.Context())
        socket = stack.enter_context(context.socket(zmq.DEALER))
        socket.set_hwm(0)
        socket.linger = 0
        socket.probe_router = 1  # Introduces this client with an empty message.
        socket.connect(endpoint(Path(directory)))
        stdin, lifeline = os.pipe()
        stack.callback(os.close, lifeline)
        stack.callback(os.close, stdin)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service.engine.process", directory, msgspec.json.encode(config)),
            stdin=stdin,
            start_new_session=True,
        )
        channel = EngineChannel(process, socket, receive)
        loop = asyncio.get_running_loop()
        loop.add_reader(socket.fileno(), channel.drain)
        try:
            yield channel
        finally:
            loop.remove_reader(socket.fileno())
            await channel.leave(grace_seconds)


def _short_parent() -> str:
    """Where to make the private directory: a unix socket's path is limited to about 100 bytes."""
    parent = tempfile.gettempdir()
    return parent if len(os.fsencode(parent)) <= zmq.IPC_PATH_MAX_LEN - len("/headlight-12345678/engine") else "/tmp"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
