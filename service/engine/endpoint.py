"""The engine's address: a unix socket in a directory of its own, whose path its clients are told."""

import os
import tempfile
from pathlib import Path

import zmq


def endpoint(directory: Path) -> str:
    """The ZeroMQ address of the engine in this directory."""
    return f"ipc://{directory}/engine"


def short_parent() -> str:
    """The parent for the engine's directory; it is short because a unix socket's path is limited to about 100 bytes."""
    parent = tempfile.gettempdir()
    return parent if len(os.fsencode(parent)) <= zmq.IPC_PATH_MAX_LEN - len("/headlight-12345678/engine") else "/tmp"
