"""Which build of PyTorch `make serve` installs, with a Python that only says what it is asked for."""

import os
import platform
import subprocess
from pathlib import Path

import pytest

from tests.deploy.tools import DEPLOY

INDEX = "https://index.example/cpu"
STUB = """#!/bin/sh
case "$*" in
*--dry-run*) exit $ON_DISK ;;
*urllib*) exit $ANSWERS ;;
*torch.version*) exit $OTHER_BUILD ;;
*) echo "pip: $*" ;;
esac
"""

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere there is but one build")


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def install(
    folder: Path, *build: str, gpu: bool = False, on_disk: bool = False, answers: bool = True, fits: bool = True
) -> subprocess.CompletedProcess[str]:
    python = executable(folder / "python", STUB)
    if gpu:
        executable(folder / "nvidia-smi", "#!/bin/sh\n")
    status = {"ON_DISK": on_disk, "ANSWERS": answers, "OTHER_BUILD": fits}
    environment = {name: str(int(not good)) for name, good in status.items()} | {"TORCH_CPU_INDEX": INDEX}
    environment["PATH"] = f"{folder}:{os.environ['PATH']}"
    command = ["sh", str(DEPLOY / "install_torch.sh"), str(python), *build]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.skipif(os.path.exists("/dev/nvidia0") or os.path.exists("/dev/kfd"), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("on_disk", "answers", "from_index"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_without_a_gpu(tmp_path: Path, on_disk: bool, answers: bool, from_index: bool) -> None:
    result = install(tmp_path, on_disk=on_disk, answers=answers)
    said, run = result.stdout.splitlines()
    assert result.returncode == 0
    assert said.startswith("torch: the CPU build" if from_index else "torch: what pip finds")
    assert (f"--extra-index-url {INDEX}" in run) == from_index
    assert "--constraint constraints.txt" in run


def test_with_a_gpu(tmp_path: Path) -> None:
    said, run = install(tmp_path, "auto", gpu=True, answers=True).stdout.splitlines()
    assert said == "torch: what pip finds (this machine has a GPU)"
    assert INDEX not in run


@pytest.mark.parametrize(("build", "from_index"), [("cpu", True), ("cuda", False)])
@pytest.mark.parametrize("gpu", [True, False])
def test_what_was_asked_for_is_installed_or_refused(tmp_path: Path, build: str, from_index: bool, gpu: bool) -> None:
    result = install(tmp_path, build, gpu=gpu, on_disk=True, answers=False)
    said, run = result.stdout.splitlines()
    assert result.returncode == 0
    assert f"TORCH={build}" in said
    assert (INDEX in run) == from_index
    result = install(tmp_path, build, gpu=gpu, fits=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)


def test_another_word_is_refused(tmp_path: Path) -> None:
    result = install(tmp_path, "rocm")
    assert (result.returncode, result.stdout) == (2, "")
    assert "TORCH=rocm" in result.stderr
