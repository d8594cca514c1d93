"""Messages between the supervisor and an API process, as lines of JSON over pipes."""

from typing import Any

import msgspec

from model.checkpoint.sampling_defaults import SamplingDefaults
from service.engine.messages import Failed
from service.engine.status import EngineStatus


class ApiConfig(msgspec.Struct, frozen=True):
    """Configuration that the API processes of a server have in common."""

    settings: dict[str, Any]
    """All settings, keys included: for a pipe only."""
    model_name: str
    model_path: str
    model_sampling: SamplingDefaults | None
    """Sampling defaults of the model, as in a checkpoint's `Source`."""
    listener: int
    """Descriptor of the listening socket, which all API processes share."""

    def __repr__(self) -> str:
        # Keys must not appear where this object is printed.
        return f"ApiConfig(model_name={self.model_name!r})"


class Setup(msgspec.Struct, frozen=True):
    """The first line to an API process: its configuration."""

    config: ApiConfig
    folder: str
    """Folder of the files that all API processes share, see `Shared`."""
    slot: int
    """Index of this API process. A replacement gets the same slot."""
    started: int
    """Start of the server, in Unix seconds."""


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Take no more completions, and leave when those in flight are finished, or after `drain_seconds`."""


class Alive(msgspec.Struct, frozen=True, tag=True):
    """The event loop turns. Sent once the process serves, and every second from then on."""


ToApi = EngineStatus | Drain
FromApi = Alive | Failed


def line(message: msgspec.Struct) -> bytes:
    """The message as one line of JSON."""
    return msgspec.json.encode(message) + b"\n"
