"""The supervisor's process, run as `python -m service.processes.supervisor_process DESCRIPTOR` by `start.py`.

The descriptor is that of a file with a `SupervisorConfig` as JSON.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import msgspec

from service.engine.status import EngineDead
from service.exit_status import exit_status
from service.observability.logs import configure
from service.processes.api_keeper import ApiDead
from service.processes.free_memory import return_free_memory
from service.processes.supervisor import Supervisor
from service.processes.supervisor_config import SupervisorConfig


def main() -> int:
    """Run the process, from its arguments to its end; returns its exit status."""
    with open(int(sys.argv[1]), "rb") as file:
        config = msgspec.json.decode(file.read(), type=SupervisorConfig)
    configure(config.engine.log_format, config.engine.log_level, "supervisor")
    return_free_memory()
    return exit_status(lambda: supervise(config), EngineDead, ApiDead)


def supervise(config: SupervisorConfig) -> None:
    """Serve until a signal.

    Raises EngineDead if the model doesn't load, and ApiDead if an API process does not stay alive.
    """
    with tempfile.TemporaryDirectory(prefix="headlight-", ignore_cleanup_errors=True) as folder:
        asyncio.run(Supervisor(config, Path(folder)).run())


if __name__ == "__main__":
    sys.exit(main())
