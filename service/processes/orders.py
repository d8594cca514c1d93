"""What crosses between the supervisor and an API process, as lines of JSON over pipes."""

from typing import Any

import msgspec

from model.checkpoint.sampling_defaults import SamplingDefaults
from service.engine.messages import Failed
from service.engine.status import EngineStatus


class Setup(msgspec.Struct, frozen=True):
    """The first line to an API process: what it is made from."""

    settings: dict[str, Any]
    """Keys and all: this is for a pipe alone."""
    model_name: str
    model_path: str
    model_sampling: SamplingDefaults | None
    """As in a checkpoint's `Source`."""
    listener: int
    """The descriptor of the listening socket, which all API processes share."""
    folder: str
    """For what else they share."""
    slot: int
    """Which of them this is. Whoever replaces it gets the same."""
    started: int
    """When the server started: Unix time in seconds."""

    def __repr__(self) -> str:
        # Whatever prints this should not print the keys.
        return f"Setup(slot={self.slot})"


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Take no more completions, and leave when those at work are finished, or after `drain_seconds`."""


class Alive(msgspec.Struct, frozen=True, tag=True):
    """The event loop turns. Said once it serves, and every second from then on."""


ToApi = EngineStatus | Drain
FromApi = Alive | Failed


def line(message: msgspec.Struct) -> bytes:
    """A message as it is written."""
    return msgspec.json.encode(message) + b"\n"
