"""Brings a model from the Hugging Face hub to this machine, into the hub library's own cache.

HF_HUB_OFFLINE, HF_HOME, HF_TOKEN and the like mean what they mean to that library.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from model.checkpoint.errors import CheckpointError

HUB_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
WANTED = ["*.json", "*.safetensors", "*.jinja"]
UNWANTED = ["*/*", "consolidated*.safetensors"]
"""Other formats in subfolders, and Mistral's second copy of the weights."""


@dataclass(frozen=True, slots=True)
class HubId:
    """A repository on the hub, as in `org/name` or `org/name@revision`."""

    repository: str
    revision: str | None = None
    """A branch, a tag or a commit; None: the main branch."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None if `text` does not look like one; `models/name.gguf` is a path that does not exist, not an id."""
        match = HUB_ID.fullmatch(text)
        if match is None or text.endswith(".gguf"):
            return None
        return cls(match["repository"], match["revision"])


def fetch_snapshot(model: HubId) -> Path:
    """The folder with the model's files, after downloading those that are not in the cache."""
    # Importing it takes a quarter of a second, which a local model need not wait for.
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            model.repository, revision=model.revision, allow_patterns=WANTED, ignore_patterns=UNWANTED
        )
    except Exception as error:  # The errors of its HTTP, file and storage libraries have no base of their own.
        raise CheckpointError(f"{model.repository}: {_reason(model, error)}") from error
    return Path(folder)


def _reason(model: HubId, error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match error:
        case GatedRepoError():
            return "access is restricted; ask for it on the hub and set HF_TOKEN"
        case RepositoryNotFoundError():
            return "no such file or folder, and the hub has no such model, or it is private and HF_TOKEN is not set"
        case RevisionNotFoundError():
            return f"the hub has no revision {model.revision!r} of it"
        case LocalEntryNotFoundError(__cause__=OfflineModeIsEnabled()):
            return "not in the hub's cache, or not all of it, and HF_HUB_OFFLINE is set"
        case LocalEntryNotFoundError():
            return "not in the hub's cache, or not all of it, and the hub cannot be reached"
        case _:
            return f"could not be fetched: {' '.join(str(error).split()) or type(error).__name__}"
