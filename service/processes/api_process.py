"""One of the processes that answer HTTP, run as `python -m service.processes.api_process` by the supervisor.

Standard input brings its setup, then orders; its end means that the supervisor is gone. Standard output carries its
signs of life. It uses the engine and does not keep it.
"""

import asyncio
import gc
import io
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread

import msgspec

from model.checkpoint.errors import CheckpointError
from model.checkpoint.source import Source
from service.api.admission import Admission
from service.api.places import Places
from service.api.server import Server
from service.app import create_app
from service.engine.client import ChannelClient
from service.engine.messages import Failed
from service.engine.status import EngineStatus
from service.observability.logs import configure
from service.observability.metrics import Metrics
from service.observability.shared_counts import share_counts
from service.processes.free_memory import return_free_memory
from service.processes.orders import Alive, Drain, FromApi, Setup, ToApi, line
from service.processes.orphan import end_as_orphan
from service.processes.shared import Shared
from service.served_model import ServedModel, check_ends, read_served_model
from service.settings import Settings, SettingsError


def main() -> None:
    """Run the process, from its first line of input to its end."""
    # A service manager or a terminal may signal every process of the server, but the supervisor decides when to leave.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Unbuffered: a reader blocked in a buffered file would hold a lock that the interpreter waits for at its end.
    orders = io.FileIO(sys.stdin.fileno(), closefd=False)
    say = _voice()
    setup = msgspec.json.decode(orders.readline(), type=Setup)
    client = ChannelClient()
    try:
        server, served = build(setup, client, alive=lambda: say(Alive()))
    except (CheckpointError, SettingsError, OSError) as error:
        say(Failed(" ".join(str(error).split())))
        sys.exit(1)
    return_free_memory()
    # Objects that exist now stay for good, so the garbage collector need not look at them after every large body.
    gc.freeze()
    with (
        socket.socket(fileno=setup.config.listener) as listener,
        asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner,
    ):
        follow = partial(_follow, client, served, setup.slot == 0)
        obey = (orders, runner.get_loop(), follow, server, Path(setup.folder))
        Thread(target=_obey, args=obey, daemon=True).start()
        runner.run(server.serve(sockets=[listener]))


def build(setup: Setup, client: ChannelClient, alive: Callable[[], None]) -> tuple[Server, ServedModel]:
    """Build the HTTP server of a model. Raises CheckpointError and SettingsError."""
    config = setup.config
    settings = Settings(**config.settings)
    configure(settings.log_format, settings.log_level, "api")
    shared = Shared(Path(setup.folder), setup.slot, settings.api_processes)
    shared.enter()
    served = read_served_model(settings, Source(config.model_name, Path(config.model_path), config.model_sampling))
    metrics = Metrics(
        client,
        served.model_name,
        sums=share_counts(shared.counts, shared.slot),
        pids=shared.pids,
        vllm_names=settings.vllm_metrics,
    )
    admission = Admission(settings.max_open, Places(shared.places, shared.slot, shared.slots))
    app = create_app(settings, served, client, admission, metrics, started=setup.started)
    return Server(app, settings, admission, client, alive), served


def _follow(client: ChannelClient, served: ServedModel, first: bool, status: EngineStatus) -> None:
    """Tell the client about the engine; the first of the processes checks the model when it is loaded."""
    client.follow(status)
    if first and status.ready is not None and status.restarts == 0:
        check_ends(served, status.ready.limits)


def _voice() -> Callable[[FromApi], None]:
    """A function that writes messages to the supervisor.

    Standard output is redirected to standard error first, so that nothing else that prints reaches the supervisor.
    """
    voice = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(message: FromApi) -> None:
        os.write(voice, line(message))

    return say


def _obey(
    orders: io.FileIO,
    loop: asyncio.AbstractEventLoop,
    follow: Callable[[EngineStatus], None],
    server: Server,
    folder: Path,
) -> None:
    """Read orders in a thread of its own and hand them to the event loop; exit at once when the supervisor is gone."""
    for order in orders:
        match msgspec.json.decode(order, type=ToApi):
            case EngineStatus() as status:
                loop.call_soon_threadsafe(follow, status)
            case Drain():
                loop.call_soon_threadsafe(server.drain)
    end_as_orphan(folder)


if __name__ == "__main__":
    main()
