"""Downloads a model from the Hugging Face hub into the hub library's own cache.

The library reads HF_HUB_OFFLINE, HF_HOME, HF_TOKEN and its other environment variables as usual.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from model.checkpoint.errors import CheckpointError

HUB_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
WANTED = ["*.json", "*.safetensors", "*.jinja"]
UNWANTED = ["*/*", "consolidated*.safetensors"]
"""Files that are not downloaded: other formats in subfolders, and Mistral's second copy of the weights."""


@dataclass(frozen=True, slots=True)
class HubId:
    """A repository on the hub, written `org/name` or `org/name@revision`."""

    repository: str
    revision: str | None = None
    """A branch, a tag or a commit; None: the main branch."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse a hub id; None if `text` has another form. A text like `models/name.gguf` is taken for a path."""
        match = HUB_ID.fullmatch(text)
        if match is None or text.endswith(".gguf"):
            return None
        return cls(match["repository"], match["revision"])


def fetch_snapshot(model: HubId) -> Path:
    """Download the files that are not in the cache, and return the folder with all files. Raises CheckpointError."""
    # The import takes a quarter of a second, which a local model need not wait for.
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            model.repository, revision=model.revision, allow_patterns=WANTED, ignore_patterns=UNWANTED
        )
    except Exception as error:  # The library's HTTP, file and storage errors share no other base class.
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
