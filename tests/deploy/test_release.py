"""The release workflow: valid by its schema, its shell by the shell, and the steps that can run here are run."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import parse, template
from tests.deploy.tools import CHART, ROOT, helm

WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
JOBS: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())["jobs"]
STEPS = [(job, step) for job, body in JOBS.items() for step in body["steps"] if "run" in step]


def script(job: str, name: str) -> str:
    (found,) = [step["run"] for of, step in STEPS if (of, step["name"]) == (job, name)]
    return str(found)


def bash(text: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(folder), **variables}
    command = ["bash", "-euo", "pipefail", "-c", text]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_it_is_a_workflow() -> None:
    tool = Path(sys.executable).parent / "check-jsonschema"
    command = [tool, "--builtin-schema", "vendor.github-workflows", WORKFLOW]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("job", "step"), STEPS, ids=lambda part: part if isinstance(part, str) else part["name"])
def test_its_steps_are_shell_and_take_nothing_from_outside_into_it(job: str, step: dict[str, Any]) -> None:
    done = subprocess.run(["bash", "-n", "-c", step["run"]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # What comes from outside comes by variables, which a shell does not run.
    assert "${{" not in step["run"]


def test_what_is_used_of_others_is_fixed_to_a_commit() -> None:
    used = re.findall(r"uses: (\S+)", WORKFLOW.read_text())
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name) for name in used)


def test_nothing_is_published_that_was_not_tested_nor_without_a_tag() -> None:
    assert (JOBS["image"]["needs"], JOBS["chart"]["needs"]) == ("test", "image")
    publishing = [step for _, step in STEPS if re.search(r"--push|helm push", step["run"])]
    assert len(publishing) == 2
    for step in publishing:
        assert step["if"] == "startsWith(github.ref, 'refs/tags/')"


def test_it_names_files_and_targets_that_there_are() -> None:
    text = "\n".join(step["run"] for _, step in STEPS)
    for path in set(re.findall(r"(?<![\w/.])((?:deploy|\.ci)/[\w./-]+)", text)):
        assert (ROOT / path).exists(), path
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    for variant in JOBS["image"]["strategy"]["matrix"]["variant"]:
        assert f" AS {variant}\n" in dockerfile
    for argument in set(re.findall(r"--build-arg (\w+)", text)):
        assert re.search(rf"^ARG {argument}\b", dockerfile, re.M), argument


def test_a_tag_that_is_not_the_version_is_refused(tmp_path: Path) -> None:
    check = script("test", "The tag, the package and the chart have one version")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert bash(check, ROOT, GITHUB_REF_NAME=f"v{version}").returncode == 0
    assert bash(check, ROOT, GITHUB_REF_NAME="v9.9.9").returncode != 0
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "deploy" / "chart").mkdir(parents=True)
    chart = (CHART / "Chart.yaml").read_text()
    (tmp_path / "deploy" / "chart" / "Chart.yaml").write_text(
        chart.replace(f'appVersion: "{version}"', 'appVersion: "0"')
    )
    assert bash(check, tmp_path, GITHUB_REF_NAME=f"v{version}").returncode != 0


def test_the_chart_is_packaged_with_the_published_images(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "deploy" / "chart")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "helm").symlink_to(helm())
    package = script("chart", "Package")
    done = bash(f'PATH="$PWD/bin:$PATH"\n{package}', tmp_path, GITHUB_REPOSITORY_OWNER="Example", REGISTRY="ghcr.io")
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = (tmp_path / "build" / "chart").glob("headlight-*.tgz")
    documents = parse(template("--set", "alerts.enabled=true,dashboard.enabled=true", chart=archive).stdout)
    images = {
        c["image"] for d in documents if d["kind"] == "Deployment" for c in d["spec"]["template"]["spec"]["containers"]
    }
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert images == {f"ghcr.io/example/headlight:{version}-cpu"}
    # The package has what the repository's chart only links to.
    assert {"PrometheusRule", "ConfigMap"} <= {document["kind"] for document in documents}
