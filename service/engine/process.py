"""The engine as a process of its own: it loads a model, then steps a core on behalf of its clients.

Run as `python -m service.engine.process DIRECTORY CONFIG`: the directory that holds the socket, and an `EngineConfig`
as JSON. Standard input is the lifeline: its end means that the parent is gone. Knows nothing of text or of HTTP.
"""

import faulthandler
import logging
import os
import pkgutil
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread

import msgspec
import zmq

from model.checkpoint.errors import CheckpointError
from model.contract import DeviceLostError, Runner, RunnerConfig
from service.engine.callers import NO_LIMITS, CallerLimits
from service.engine.core import EngineCore
from service.engine.messages import Cancel, Delta, Failed, FromEngine, Ready, Report, Shutdown, Submit, ToEngine
from service.logs import LogFormat, configure

HEARTBEAT_SECONDS = 1.0
"""An idle engine reports this often."""

QUIET_SECONDS = 5.0
"""A step that may take longer than this is announced; no timeout for an engine is shorter."""

logger = logging.getLogger(__name__)


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine process is made from. It travels as JSON on the command line, so it holds no secrets."""

    runner: RunnerConfig
    token_budget: int
    max_running: int
    caller_limits: CallerLimits = NO_LIMITS
    log_level: str = "info"
    log_format: LogFormat = "text"
    loader: str = "model.loading:load_runner"
    """module:function of a RunnerConfig that returns a Runner; imported in the engine process alone."""


def endpoint(directory: Path) -> str:
    """Where the engine listens that was given this directory."""
    return f"ipc://{directory}/engine"


class EngineServer:
    """Carries messages between a core and its clients.

    A client makes itself known by an empty message, which is answered with Ready. From then on it gets a report of
    every step: the statistics, and the deltas of the requests it submitted. Ids of requests differ between clients.
    """

    def __init__(self, socket: zmq.Socket[bytes], make_core: Callable[..., EngineCore], ready: Ready) -> None:
        """`socket` is a bound ROUTER that raises EHOSTUNREACH for a client that is gone; `ready` greets each client.

        `make_core` takes `announce`, as an `EngineCore` does. Raises ValueError as that does.
        """
        self._socket = socket
        self._core = make_core(announce=self._announce)
        self._ready = ready
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
        self._clients: set[bytes] = set()
        self._owners: dict[int, bytes] = {}

    def run(self) -> None:
        """Receive, step, report, until a client says Shutdown. Raises DeviceLostError as `EngineCore.step` does."""
        while self._receive():
            report = self._core.step() or Report([], self._core.stats())
            with self._core.measured("deliver"):
                self._send(report)

    def _receive(self) -> bool:
        """Take in all that has arrived; while there is nothing to compute, wait for it as long as a heartbeat."""
        wait = 0 if self._core.has_work else int(HEARTBEAT_SECONDS * 1000)
        while self._socket.poll(wait):
            client, *_, payload = self._socket.recv_multipart()
            if not payload:
                self._clients.add(client)
                self._post(client, self._ready)
            elif not self._handle(client, payload):
                return False
            wait = 0
        return True

    def _handle(self, client: bytes, payload: bytes) -> bool:
        """Whether to go on."""
        try:
            message = self._decoder.decode(payload)
        except (ValueError, RecursionError) as error:
            logger.warning("dropped a malformed message: %s", error)
            return True
        match message:
            case Submit(id=id):
                self._owners[id] = client
                self._core.submit(message)
            case Cancel():
                self._core.cancel(message)
            case Shutdown():
                return False
        return True

    def _send(self, report: Report) -> None:
        deltas: dict[bytes, list[Delta]] = defaultdict(list)
        for delta in report.deltas:
            deltas[self._owners[delta.id]].append(delta)
            if delta.finish_reason is not None:
                del self._owners[delta.id]
        for client in list(self._clients):
            self._post(client, Report(deltas[client], report.stats))

    def _post(self, client: bytes, message: FromEngine) -> None:
        try:
            self._socket.send_multipart([client, msgspec.msgpack.encode(message)])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._forget(client)

    def _announce(self, seconds: float | None) -> None:
        """Say that no report may come for a while; of short steps nobody needs to know."""
        if seconds is None or seconds > QUIET_SECONDS:
            for client in list(self._clients):
                self._post(client, Report([], self._core.stats(), seconds))

    def _forget(self, client: bytes) -> None:
        """Free what a client left behind."""
        self._clients.discard(client)
        for id in [id for id, owner in self._owners.items() if owner == client]:
            self._core.cancel(Cancel(id))


def serve(socket: zmq.Socket[bytes], config: EngineConfig) -> None:
    """Load the model and serve it; one that cannot be loaded is reported as Failed.

    Ends the process if the device is lost: its parent starts another.
    """
    try:
        load: Callable[[RunnerConfig], Runner] = pkgutil.resolve_name(config.loader)
        runner = load(config.runner)
        make_core = partial(
            EngineCore,
            runner,
            token_budget=config.token_budget,
            max_running=config.max_running,
            caller_limits=config.caller_limits,
        )
        server = EngineServer(socket, make_core, Ready(runner.limits, runner.info, os.getpid()))
    except (CheckpointError, ValueError) as error:
        refuse(socket, Failed(_one_line(error)))
    except Exception as error:
        logger.exception("the engine could not start")
        refuse(socket, Failed(f"{type(error).__name__}: {_one_line(error)}"))
    else:
        try:
            server.run()
        except DeviceLostError as error:
            logger.critical("the device is lost: %s", _one_line(error))
            sys.exit(1)


def refuse(socket: zmq.Socket[bytes], failed: Failed) -> None:
    """Answer every client with the failure, until one that has heard it says Shutdown."""
    while True:
        client, *_, payload = socket.recv_multipart()
        if payload:
            return
        socket.send_multipart([client, msgspec.msgpack.encode(failed)])


def main() -> None:
    """The process, from its arguments to its end."""
    directory, config = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=EngineConfig)
    # A service manager or a terminal may signal every process of the server: when to leave is for the parent to say.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_with_parent, args=(directory,), daemon=True).start()
    faulthandler.enable()
    configure(config.log_format, config.log_level, "engine")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.set_hwm(0)  # Without limit: ROUTER would drop what is over it.
        socket.linger = 0
        socket.router_mandatory = 1
        socket.bind(endpoint(directory))
        serve(socket, config)


def _end_with_parent(directory: Path) -> None:
    """Wait for the end of standard input, which nobody writes to, and leave nothing behind."""
    os.read(sys.stdin.fileno(), 1)
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(1)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
