"""The engine as a process of its own: it loads a model, then steps a core on behalf of its clients.

Run as `python -m service.processes.engine_process DIRECTORY CONFIG`: the directory that holds the socket, and an
`EngineConfig` as JSON. Standard input is the lifeline: its end means that the parent is gone. Knows nothing of HTTP,
and of text only the bytes of tokens.
"""

import faulthandler
import gc
import logging
import os
import pkgutil
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Thread

import msgspec
import zmq

from model.checkpoint.errors import CheckpointError
from model.checkpoint.source import open_checkpoint
from model.contract import DeviceLostError, Runner
from model.runner_config import RunnerConfig
from service.engine.core import EngineCore
from service.engine.drafts import DraftPolicy, leave_open, look_up
from service.engine.endpoint import endpoint
from service.engine.event_publisher import EventPublisher
from service.engine.grammar_tokens import Vocabulary
from service.engine.messages import Failed, Ready
from service.engine.server import EngineServer
from service.observability.logs import configure
from service.processes.engine_config import EngineConfig
from service.processes.free_memory import return_free_memory, return_large_pieces_at_once
from service.processes.orphan import end_as_orphan

logger = logging.getLogger(__name__)


def serve(socket: zmq.Socket[bytes], config: EngineConfig) -> None:
    """Load the model and serve it; if it cannot be loaded, its clients get Failed.

    Ends the process if the device is lost; the parent then starts another.
    """
    with ExitStack() as stack:
        _serve(socket, config, stack)


def _serve(socket: zmq.Socket[bytes], config: EngineConfig, stack: ExitStack) -> None:
    try:
        publisher = stack.enter_context(EventPublisher(config.events)) if config.events else None
        runner = _loader(config.loader)(config.runner)
        return_free_memory()
        make_core = partial(
            EngineCore,
            runner,
            token_budget=config.runner.token_budget,
            max_running=config.runner.max_running,
            caller_limits=config.caller_limits,
            drafts=DraftPolicy(
                guess=look_up if config.runner.draft_model is None else leave_open,
                tokens=config.draft_tokens,
                running=config.draft_running,
            ),
            read_vocabulary=partial(read_vocabulary, config.runner),
            publish=publisher.publish if publisher else None,
        )
        server = EngineServer(socket, make_core, Ready(runner.limits, runner.info, os.getpid()))
    except (CheckpointError, ValueError) as error:
        refuse(socket, Failed(_one_line(error)))
    except Exception as error:
        logger.exception("the engine could not start")
        refuse(socket, Failed(f"{type(error).__name__}: {_one_line(error)}"))
    else:
        # Objects that exist now stay for good. A full collection that looked at them would hold up a step.
        gc.freeze()
        try:
            server.run()
        except DeviceLostError as error:
            logger.critical("the device is lost: %s", _one_line(error))
            sys.exit(1)


def _loader(name: str) -> Callable[[RunnerConfig], Runner]:
    """Import a loader, and torch with it.

    Modules stay for good, so the garbage collector never looks at them: while they are imported that would take about a
    tenth of the time.
    """
    gc.disable()
    try:
        load: Callable[[RunnerConfig], Runner] = pkgutil.resolve_name(name)
    finally:
        gc.freeze()
        gc.enable()
    return load


def read_vocabulary(config: RunnerConfig) -> Vocabulary:
    """The tokenizer of the model, for grammars. Raises CheckpointError."""
    # Imported with the first grammar: most engines never see one.
    from service.text.tokenizer import load_tokenizer

    return load_tokenizer(open_checkpoint(Path(config.model), weights=config.load_format != "dummy").tokenizer)


def refuse(socket: zmq.Socket[bytes], failed: Failed) -> None:
    """Answer every client with the failure, until one that has got it sends Shutdown."""
    while True:
        client, *_, payload = socket.recv_multipart()
        if payload:
            return
        socket.send_multipart([client, msgspec.msgpack.encode(failed)])


def main() -> None:
    """Run the process, from its arguments to its end."""
    directory, config = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=EngineConfig)
    # A service manager or a terminal may signal every process of the server, but the parent decides when to leave.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return_large_pieces_at_once()
    Thread(target=_end_with_parent, args=(directory,), daemon=True).start()
    faulthandler.enable()
    configure(config.log_format, config.log_level, "engine")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.set_hwm(0)  # Without limit: ROUTER would drop messages above it.
        socket.linger = 0
        socket.router_mandatory = 1
        socket.bind(endpoint(directory))
        serve(socket, config)


def _end_with_parent(directory: Path) -> None:
    """Wait for the end of standard input, to which nobody writes; then remove the directory and exit at once."""
    os.read(sys.stdin.fileno(), 1)
    end_as_orphan(directory)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
