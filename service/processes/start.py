"""The start of a server: its settings are checked and its model is found, then the process becomes the supervisor.

The start takes libraries that the supervisor has no use for, so the supervisor is a program of its own, which the same
process goes on with.
"""

import os
import signal
import socket
import sys
from tempfile import TemporaryFile
from typing import IO, NoReturn

import msgspec

from model.checkpoint.source import Source
from service.api.keys import ApiKeys
from service.model_files import locate, served_names
from service.observability.logs import configure
from service.processes.engine_config import engine_config
from service.processes.orders import ApiConfig
from service.processes.supervisor_config import STOPS, SupervisorConfig
from service.python_command import python_command
from service.settings import Settings

_BANNER = """
Headlight serves {model}
  API        {url}/v1
  API docs   {url}/docs

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\{authorization}
    -d '{{"messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
"""
_AUTHORIZATION = """
    -H 'Authorization: Bearer YOUR_API_KEY' \\"""


def run_server(settings: Settings, listener: socket.socket) -> NoReturn:
    """Serve on a listening socket until a signal, and exit. This process becomes the supervisor, with the same id.

    Raises CheckpointError and SettingsError for a model or settings that cannot be served.
    """
    configure(settings.log_format, settings.log_level, "supervisor")
    # Checks also that the keys can be read; each API process reads them for itself.
    with_key = ApiKeys(settings).required
    _become_supervisor(_supervisor_config(settings, locate(settings), listener, with_key))


def _supervisor_config(settings: Settings, source: Source, listener: socket.socket, with_key: bool) -> SupervisorConfig:
    """The supervisor's configuration; `with_key` says whether clients need an API key."""
    return SupervisorConfig(
        engine=engine_config(settings, source),
        api=ApiConfig(
            settings=settings.revealed(),
            model_name=source.name,
            model_path=str(source.path),
            model_sampling=source.sampling,
            listener=listener.fileno(),
        ),
        api_processes=settings.api_processes,
        drain_seconds=settings.drain_seconds,
        timeout_seconds=settings.engine_timeout_seconds,
        banner=banner(served_names(settings, source)[0], listener, with_key),
    )


def _become_supervisor(config: SupervisorConfig) -> NoReturn:
    file = _nameless_file()
    file.write(msgspec.json.encode(config))
    file.seek(0)
    for descriptor in (file.fileno(), config.api.listener):
        os.set_inheritable(descriptor, True)
    sys.stdout.flush()
    # A signal that comes before the supervisor can handle it waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    # Whoever lists processes sees the command that was given.
    shown = ("headlight", *sys.argv[1:])
    os.execv(sys.executable, python_command("service.processes.supervisor_process", str(file.fileno()), *shown))


def _nameless_file() -> IO[bytes]:
    """A file for this process, in memory where the system has that: keys should not reach a disk."""
    return open(os.memfd_create("headlight"), "w+b") if hasattr(os, "memfd_create") else TemporaryFile()


def banner(model: str, listener: socket.socket, with_key: bool) -> str:
    """Lines that greet whoever started the server, with the command of a first request."""
    host, port = listener.getsockname()[:2]
    # An address that stands for every interface is shown as the loopback address, which a browser can open.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    # A URL writes the % of an interface's name, as in fe80::1%eth0, as %25.
    url = f"http://[{host.replace('%', '%25')}]:{port}" if ":" in host else f"http://{host}:{port}"
    return _BANNER.format(model=model, url=url, authorization=_AUTHORIZATION if with_key else "")
