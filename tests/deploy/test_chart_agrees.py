"""What the chart, the image and the compose file say of the server is what the server says of itself."""

import json
import re
from typing import Any

import pytest
import yaml

from service.api.auth import OPEN_PATHS
from service.settings import PREFIX, Settings
from tests.deploy.chart import CASES, Rendered, render, set_json
from tests.deploy.tools import CHART, DEPLOY

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SETTINGS = {PREFIX + name.upper() for name in Settings.model_fields}
NOT_FROM_SETTINGS = {
    "model",
    "served_model_name",
    "host",
    "port",
    "home",
    "api_keys",
    "api_keys_file",
    "drain_seconds",
}
"""What the chart sets itself, from values of its own."""


def settings_schema() -> dict[str, Any]:
    """The schema of the chart's value `settings`. It is part of values.schema.json as it is returned here."""
    fields = Settings.model_json_schema()["properties"]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: value_schema(schema) for name, schema in fields.items() if name not in NOT_FROM_SETTINGS},
    }


def value_schema(field: dict[str, Any]) -> dict[str, Any]:
    """A setting's schema, without what Helm has other means for: defaults, and null for none."""
    schema = {name: value for name, value in field.items() if name not in ("title", "default", "anyOf")}
    for choice in field.get("anyOf", []):
        schema |= choice if choice != {"type": "null"} else {}
    if "bytes" in field["description"]:
        schema["type"] = ["integer", "string"]  # As in 4GiB.
    return schema


@pytest.fixture(scope="module", params=CASES)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return render(request.param)


def test_the_values_schema_knows_every_setting() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    expected = settings_schema()
    assert schema["properties"]["settings"] == expected, (
        f"in values.schema.json, the property settings should be\n{json.dumps(expected, indent=2)}"
    )


def test_every_variable_of_a_pod_is_a_setting(rendered: Rendered) -> None:
    for container in rendered.containers():
        names = [variable["name"] for variable in container["env"]]
        assert {name for name in names if name.startswith(PREFIX)} <= SETTINGS
        assert len(names) == len(set(names))


def test_the_server_takes_what_the_pod_gives_it(rendered: Rendered) -> None:
    own = {name.removeprefix(PREFIX).lower(): value for name, value in rendered.environment().items() if PREFIX in name}
    settings = Settings(**own)
    assert settings.host == "0.0.0.0"
    assert settings.port == rendered.server["ports"][0]["containerPort"]
    assert settings.log_format == "json"
    mounts = [mount["mountPath"] for mount in rendered.server["volumeMounts"]]
    assert rendered.values["model"]["source"] == "image" or str(settings.home) in mounts
    assert settings.api_keys_file is None or str(settings.api_keys_file.parent) in mounts


def test_defaults_are_the_servers_own() -> None:
    fields = Settings.model_fields
    assert VALUES["port"] == fields["port"].default
    assert VALUES["model"]["name"] == fields["model"].default
    assert VALUES["shutdown"]["drainSeconds"] == fields["drain_seconds"].default
    assert VALUES["autoscaling"]["runningPerReplica"] < fields["max_running"].default


def test_probes_ask_routes_that_need_no_key(rendered: Rendered) -> None:
    paths = {name: rendered.server[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/health", "livenessProbe": "/health"}
    assert rendered.server["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert {"/health", "/ready", "/metrics"} <= OPEN_PATHS
    assert {rendered.server[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "liveness", "readiness")} == {
        rendered.server["ports"][0]["name"]
    }


@pytest.mark.parametrize(
    ("kind", "period", "timeout", "failures"),
    [("startup", 10, 5, 60), ("liveness", 10, 5, 3), ("readiness", 5, 2, 3)],
)
def test_probes_ask_as_often_as_the_field_recommends(
    rendered: Rendered, kind: str, period: int, timeout: int, failures: int
) -> None:
    numbers = {name: value for name, value in rendered.server[f"{kind}Probe"].items() if name != "httpGet"}
    assert numbers == {"periodSeconds": period, "timeoutSeconds": timeout, "failureThreshold": failures}


def test_a_drain_of_nodes_takes_one_replica_at_once(rendered: Rendered) -> None:
    assert rendered.of("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize("drain", [0, 30, 45.5, 600])
@pytest.mark.parametrize("pre_stop", [0, 15])
def test_the_grace_period_is_longer_than_a_pod_takes_to_end(drain: float, pre_stop: int) -> None:
    rendered = render("values.yaml", *set_json(shutdown={"drainSeconds": drain, "preStopSeconds": pre_stop}))
    settings = rendered.environment()
    # Kubernetes refuses to sleep for 0 seconds.
    assert rendered.server.get("lifecycle") == ({"preStop": {"sleep": {"seconds": pre_stop}}} if pre_stop else None)
    assert float(settings["HEADLIGHT_DRAIN_SECONDS"]) == drain
    needed = pre_stop + drain + VALUES["shutdown"]["teardownSeconds"]
    assert needed < rendered.pod["terminationGracePeriodSeconds"] < needed + 10


def test_numbers_arrive_as_they_were_written() -> None:
    settings = {"max_request_tokens": 104857600, "memory_share": 0.25, "cache_memory": "4GiB", "graphs": False}
    environment = render("values.yaml", *set_json(settings=settings)).environment()
    assert environment["HEADLIGHT_MAX_REQUEST_TOKENS"] == "104857600"
    assert environment["HEADLIGHT_MEMORY_SHARE"] == "0.25"
    assert environment["HEADLIGHT_CACHE_MEMORY"] == "4GiB"
    assert environment["HEADLIGHT_GRAPHS"] == "false"


def test_the_images_folders_are_the_charts() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    environment = dict(re.findall(r"(\w+)=(\S+)", dockerfile[dockerfile.index("AS runtime") :]))
    rendered = render("values.yaml")
    assert {name for name in environment if name.startswith(PREFIX)} <= SETTINGS
    pod = rendered.environment()
    for name in ("HEADLIGHT_HOME", "HEADLIGHT_HOST", "HEADLIGHT_PORT", "HF_HOME"):
        assert environment[name] == pod[name]
    mounts = {mount["mountPath"] for mount in rendered.server["volumeMounts"]}
    assert {environment["HOME"], environment["HEADLIGHT_HOME"]} <= mounts
    assert environment["TRITON_CACHE_DIR"].startswith(environment["HOME"] + "/")
    user = rendered.pod["securityContext"]["runAsUser"]
    assert f"--uid {user} " in dockerfile
    assert f"USER {user}:{user}" in dockerfile
    assert f"EXPOSE {pod['HEADLIGHT_PORT']}" in dockerfile


def test_compose_sets_what_exists() -> None:
    server = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["server"]
    names = {name for name in server["environment"] if name.startswith(PREFIX)}
    assert names
    assert names <= SETTINGS
    grace = float(server["stop_grace_period"].removesuffix("s"))
    drain = float(server["environment"].get("HEADLIGHT_DRAIN_SECONDS", Settings.model_fields["drain_seconds"].default))
    assert grace > drain + VALUES["shutdown"]["teardownSeconds"]


def test_the_readme_names_every_value() -> None:
    """Of the chart's values, the first level: what is below is explained where it is set."""
    table = (DEPLOY / "README.md").read_text().split("| value |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)[.\w]*`", "".join(line.split("|")[1] for line in table.splitlines()[2:]))) == set(
        VALUES
    )
