"""The end of a process whose parent is gone: the directory they shared is removed, and the process exits at once."""

import os
import shutil
import time
from pathlib import Path
from typing import NoReturn

ATTEMPTS = 100
PAUSE_SECONDS = 0.01


def end_as_orphan(directory: Path) -> NoReturn:
    """Remove the directory and exit with status 1, whatever other threads of this process are doing."""
    remove(directory)
    os._exit(1)


def remove(directory: Path) -> None:
    """Remove a directory in which others may create files meanwhile; give up after a second.

    A socket that another thread binds between the listing of the directory and its removal makes the removal fail.
    """
    for _ in range(ATTEMPTS):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(PAUSE_SECONDS)
