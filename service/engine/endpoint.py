"""Where an engine listens: a unix socket in a directory of its own, by whose path its clients find it."""

import os
import tempfile
from pathlib import Path

import zmq


def endpoint(directory: Path) -> str:
    """Where the engine listens that was given this directory."""
    return f"ipc://{directory}/engine"


def short_parent() -> str:
    """Where to make the private directory: a unix socket's path is limited to about 100 bytes."""
    parent = tempfile.gettempdir()
    return parent if len(os.fsencode(parent)) <= zmq.IPC_PATH_MAX_LEN - len("/headlight-12345678/engine") else "/tmp"
