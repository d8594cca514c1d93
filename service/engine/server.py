"""The engine's end of the socket: carries messages between a core and its clients. Knows nothing of text or of HTTP."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable

import msgspec
import zmq

from service.engine.core import EngineCore
from service.engine.messages import Cancel, Drawn, FromEngine, News, Ready, Report, Shutdown, Submit, ToEngine

HEARTBEAT_SECONDS = 1.0
"""Limit of the time between two reports to a client for which there is no news, while steps are short."""

QUIET_SECONDS = 5.0
"""A step that may take longer than this is announced; no timeout for an engine is shorter."""

logger = logging.getLogger(__name__)


class EngineServer:
    """Carries messages between a core and its clients.

    A client introduces itself with an empty message, which is answered with Ready. From then on it gets reports: the
    statistics, and the deltas of the requests it submitted. Each step that has some is reported; a client without them
    gets a report now and then, as a sign of life, and when the engine comes to rest. Clients never use the same request
    ids.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        make_core: Callable[..., EngineCore],
        ready: Ready,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`socket` is a bound ROUTER that raises EHOSTUNREACH for a client that is gone; `ready` greets each client.

        `make_core` takes the argument `announce` of `EngineCore`, and may raise its ValueError. `clock` gives seconds.
        """
        self._socket = socket
        self._core = make_core(announce=self._announce)
        self._ready = ready
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
        self._clock = clock
        self._clients: dict[bytes, float] = {}
        """The moment of the newest message to each client, in seconds on the clock."""
        self._owners: dict[int, bytes] = {}

    def run(self) -> None:
        """Receive, step and report, until a client sends Shutdown. Raises DeviceLostError as `EngineCore.step` does."""
        while self._receive():
            report = self._core.step() or Report([], self._core.stats())
            with self._core.measured("deliver"):
                self._send(report)

    def _receive(self) -> bool:
        """Take in all messages that have arrived, after a wait of up to a heartbeat if idle; False after Shutdown."""
        wait = 0 if self._core.has_work else int(HEARTBEAT_SECONDS * 1000)
        while self._socket.poll(wait):
            client, *_, payload = self._socket.recv_multipart()
            if not payload:
                self._post(client, self._ready)
            elif not self._handle(client, payload):
                return False
            wait = 0
        return True

    def _handle(self, client: bytes, payload: bytes) -> bool:
        """Act on one message; False for Shutdown."""
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
        news: dict[bytes, list[News]] = defaultdict(list)
        for item in report.news:
            if isinstance(item, Drawn):
                for client, part in self._parts(item).items():
                    news[client].append(part)
                continue
            news[self._owners[item.id]].append(item)
            if item.finish_reason is not None:
                del self._owners[item.id]
        # All clients are due after an idle engine's wait, and when it comes to rest they learn the state it rests in.
        due = self._clock() - HEARTBEAT_SECONDS / 2
        for client, told in list(self._clients.items()):
            if client in news or told <= due or not self._core.has_work:
                self._post(client, Report(news[client], report.stats))

    def _parts(self, drawn: Drawn) -> dict[bytes, Drawn]:
        """Each client's part of some columns."""
        owners = [self._owners[id] for id in drawn.ids]
        clients = set(owners)
        if len(clients) == 1:
            return dict.fromkeys(clients, drawn)
        places = {client: [place for place, owner in enumerate(owners) if owner == client] for client in clients}
        return {client: drawn.at(mine) for client, mine in places.items()}

    def _post(self, client: bytes, message: FromEngine) -> None:
        try:
            self._clients[client] = self._clock()
            self._socket.send(client, zmq.SNDMORE)
            self._socket.send(msgspec.msgpack.encode(message))
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._forget(client)

    def _announce(self, seconds: float | None) -> None:
        """Tell all clients that the next report may take `seconds`; short steps are not announced."""
        if seconds is None or seconds > QUIET_SECONDS:
            for client in list(self._clients):
                self._post(client, Report([], self._core.stats(), seconds))

    def _forget(self, client: bytes) -> None:
        """Cancel the requests of a client that is gone."""
        self._clients.pop(client, None)
        for id in [id for id, owner in self._owners.items() if owner == client]:
            self._core.cancel(Cancel(id))
