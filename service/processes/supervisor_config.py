"""The configuration of a supervisor, which never loads the settings that it is made of."""

import signal

import msgspec

from service.processes.engine_config import EngineConfig
from service.processes.orders import ApiConfig

STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a server."""


class SupervisorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Configuration of a supervisor. It holds keys, so it travels as JSON in a file without a name."""

    engine: EngineConfig
    api: ApiConfig
    api_processes: int
    drain_seconds: float
    """Time for requests in flight once the server is to end."""
    timeout_seconds: float
    """Time without a sign of life after which the engine, or an API process, counts as hung."""
    banner: str
    """Lines for standard output once the model is loaded, unless logs are JSON."""
