"""The image and the compose file, as far as they can be judged without building and running them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from tests.deploy.tools import DEPLOY, ROOT

DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
SCRIPTS = Path(sys.executable).parent


def instructions(name: str) -> list[str]:
    """The arguments of every such instruction, with continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return re.findall(rf"^{name} (.*)$", joined, re.MULTILINE)


def test_hadolint_finds_nothing_to_complain_of() -> None:
    command = [SCRIPTS / "hadolint", "--no-color", "--failure-threshold", "warning", DEPLOY / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_there_is_an_image_for_a_cpu_and_one_for_a_gpu_and_neither_runs_as_root() -> None:
    stages = {
        match[1]: match[2] for match in re.finditer(r"^FROM \S+ AS (\w\S*)$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S)
    }
    for target in ("cpu", "cuda"):
        assert re.findall(r"^COPY --from=(\S+)", stages[target], re.M) == [
            f"libraries-{target}",
            "wheel",
            f"materials-{target}",
        ]
        assert re.findall(r"^USER (.*)$", stages[target], re.M) == ["10001:10001"]
        # What runs as root comes before.
        assert "RUN" not in stages[target][stages[target].index("USER") :]
    assert [*stages][-1] == "cpu"
    assert len(instructions("HEALTHCHECK")) == 1


def test_the_image_gets_all_of_the_source_and_nothing_else() -> None:
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert [line for line in ignore if line and line[0] not in "#!"] == ["*", "**/__pycache__"]
    copied = {path for copy in instructions("COPY") if "--from" not in copy for path in copy.split()[:-1]}
    assert copied == allowed
    assert all((ROOT / path).exists() for path in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {package.split(".")[0] for package in project["tool"]["setuptools"]["packages"]}
    assert packages == {path for path in copied if (ROOT / path).is_dir()}


def test_nothing_is_mounted_from_a_stage() -> None:
    """What a stage made is copied: a cache may take a mount of something newer for what it has seen before."""
    assert not re.search(r"--mount=\S*from=", DOCKERFILE)


def test_what_runs_has_no_pip() -> None:
    stages = re.split(r"^(?=FROM )", re.sub(r"\\\n\s*", "", DOCKERFILE), flags=re.M)
    for target in ("cpu", "cuda"):
        (libraries,) = [stage for stage in stages if f"AS libraries-{target}\n" in stage]
        commands = re.findall(r"^RUN (.*)$", libraries, re.M)
        assert commands[-1] == "pip uninstall --yes pip"
    # The bill is made of what the images get: the environment of the stage before has a pip.
    (materials,) = [stage for stage in stages if "AS materials\n" in stage]
    assert re.search(r"^RUN .* rm -r /opt/headlight$", materials, re.M)
    (runtime,) = [stage for stage in stages if "AS runtime\n" in stage]
    assert re.search(r"^RUN rm -rf .*/pip /.*/pip-\* .*/ensurepip .*/bin/pip\*", runtime, re.M)
    final = [stage for stage in stages if re.search(r"AS (runtime|cpu|cuda)\n", stage)]
    assert len(final) == 3
    assert not any(re.search(r"\bpip (install|wheel|download)", stage) for stage in final)


def test_the_image_says_what_it_is() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = [
        dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', label)) for label in instructions("LABEL")
    ]
    assert len(labels) == 2
    assert labels[0] == labels[1]
    assert labels[0]["licenses"] == project["license"]
    assert {labels[0][name] for name in ("version", "revision", "source", "base.name")} == {
        *("$VERSION", "$REVISION", "$SOURCE", "$PYTHON_IMAGE")
    }
    assert {argument for argument in instructions("ARG") if argument.startswith("VERSION")} == {
        f"VERSION={project['version']}"
    }


def test_the_versions_of_chart_image_and_package_are_one() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((DEPLOY / "chart" / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    for path in (DEPLOY / "README.md", DEPLOY / "Dockerfile", DEPLOY / "compose.yaml"):
        assert set(re.findall(r"headlight:([\d.]+)-(?:cpu|cuda)", path.read_text())) == {version}


def test_the_health_check_asks_the_server() -> None:
    (check,) = instructions("HEALTHCHECK")
    command = yaml.safe_load(check[check.index("[") :])
    assert command[:2] == ["python", "-c"]
    compile(command[2], "HEALTHCHECK", "exec")
    assert "/health" in command[2]


def test_compose_is_valid_by_its_specification() -> None:
    command = [SCRIPTS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_compose_mounts_is_there() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    mounted = [mount.split(":") for service in services.values() for mount in service["volumes"]]
    files = {target: DEPLOY / source for source, target, *_ in mounted if source.startswith("./")}
    assert all(path.exists() for path in files.values())
    assert (DEPLOY / services["server"]["build"]["context"] / services["server"]["build"]["dockerfile"]).exists()
    # Each file names the next: Prometheus its rules, Grafana the folder of dashboards and its home.
    prometheus = yaml.safe_load(files["/etc/prometheus/prometheus.yml"].read_text())
    assert [f"/etc/prometheus/{name}" in files for name in prometheus["rule_files"]] == [True]
    provider = yaml.safe_load(files["/etc/grafana/provisioning/dashboards/headlight.yaml"].read_text())["providers"][0]
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (files[provider["options"]["path"]] / home.name).exists()
    (source,) = yaml.safe_load(files["/etc/grafana/provisioning/datasources/headlight.yaml"].read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert prometheus["scrape_configs"][0]["static_configs"] == [{"targets": ["server:8000"]}]
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
