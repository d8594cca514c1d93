"""The chart as Helm renders it: every example is valid for Kubernetes, and wrong values are refused by name."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy import custom_resources
from tests.deploy.chart import CASES, KUBERNETES, Rendered, parse, render, set_json, template
from tests.deploy.cluster import cluster
from tests.deploy.tools import CHART, DEPLOY, helm


@pytest.fixture(scope="module", params=CASES)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return render(request.param)


@pytest.mark.parametrize("case", CASES)
def test_helm_finds_nothing_to_complain_of(case: str) -> None:
    command = [helm(), "lint", "--strict", "--kube-version", KUBERNETES, "--values", str(CHART / case), str(CHART)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_document_is_valid(rendered: Rendered) -> None:
    for document in rendered.documents:
        custom_resources.validate_any(document, KUBERNETES)


def test_every_document_is_in_the_namespace_and_says_whose_it_is(rendered: Rendered) -> None:
    for document in rendered.documents:
        assert document["metadata"]["namespace"] == "llm"
        assert document["metadata"]["labels"]["app.kubernetes.io/instance"] == "headlight"


def test_whatever_selects_pods_selects_the_servers_alone(rendered: Rendered) -> None:
    pods = {
        d["metadata"]["name"]: (d["spec"]["template"] if d["kind"] == "Deployment" else d)["metadata"]["labels"]
        for d in rendered.documents
        if d["kind"] in ("Deployment", "Pod")
    }
    selectors = [
        rendered.of("Deployment")["spec"]["selector"]["matchLabels"],
        rendered.of("Service")["spec"]["selector"],
        rendered.of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        rendered.of("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(c["labelSelector"]["matchLabels"] for c in rendered.pod["topologySpreadConstraints"]),
        *(d["spec"]["selector"]["matchLabels"] for d in rendered.documents if d["kind"] == "InferencePool"),
    ]
    for selector in selectors:
        assert [name for name, labels in pods.items() if selector.items() <= labels.items()] == ["headlight"]


def test_pods_can_do_nothing_that_they_need_not(rendered: Rendered) -> None:
    for pod in rendered.pods():
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
    assert rendered.pod["automountServiceAccountToken"] is False
    assert rendered.of("Pod")["spec"]["automountServiceAccountToken"] is False


def test_mounts_have_volumes(rendered: Rendered) -> None:
    volumes = {volume["name"] for volume in rendered.pod["volumes"]}
    assert {mount["name"] for container in rendered.containers() for mount in container["volumeMounts"]} == volumes
    assert {"medium": "Memory", "sizeLimit": rendered.values["sharedMemory"]} in [
        volume.get("emptyDir") for volume in rendered.pod["volumes"]
    ]


@pytest.mark.parametrize(
    ("case", "variable", "volume"),
    [
        ("values.yaml", "smollm2-135m-instruct", {"emptyDir": {}}),
        (
            "examples/model-download.yaml",
            "meta-llama/Llama-3.2-1B-Instruct",
            {"persistentVolumeClaim": {"claimName": "models"}},
        ),
        (
            "examples/model-pvc.yaml",
            "/models/qwen3-8b",
            {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
        ),
        (
            "examples/model-oci.yaml",
            "/models/model",
            {"image": {"reference": "registry.example.com/models/qwen3-8b:2025-04", "pullPolicy": "IfNotPresent"}},
        ),
        ("examples/model-image.yaml", "smollm2-135m-instruct", None),
    ],
)
def test_the_model_is_where_the_server_looks(case: str, variable: str, volume: dict[str, Any] | None) -> None:
    rendered = render(case)
    assert rendered.environment()["HEADLIGHT_MODEL"] == variable
    volumes = {entry.pop("name"): entry for entry in yaml.safe_load(yaml.dump(rendered.pod["volumes"]))}
    assert volumes.get("models") == volume
    mounts = {mount["name"]: mount for mount in rendered.server["volumeMounts"]}
    assert volume is None or mounts["models"] == {"name": "models", "mountPath": "/models", "readOnly": True}


def test_what_is_downloaded_is_what_is_served() -> None:
    rendered = render("examples/model-download.yaml")
    (fetch,) = rendered.pod["initContainers"]
    assert fetch["args"] == ["fetch", rendered.environment()["HEADLIGHT_MODEL"]]
    environment = {variable["name"]: variable.get("value") for variable in fetch["env"]}
    assert environment == {
        "HEADLIGHT_HOME": rendered.environment()["HEADLIGHT_HOME"],
        "HF_HOME": rendered.environment()["HF_HOME"],
        "HF_TOKEN": None,
    }


def test_keys_come_from_a_file_of_the_secret() -> None:
    rendered = render("values.yaml", "--set", "apiKeys.create={one,two}")
    secret = rendered.of("Secret")
    assert secret["stringData"] == {"api-keys": "one\ntwo"}
    (volume,) = [volume for volume in rendered.pod["volumes"] if volume["name"] == "api-keys"]
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    (mount,) = [mount for mount in rendered.server["volumeMounts"] if mount["name"] == "api-keys"]
    path = f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}"
    assert rendered.environment()["HEADLIGHT_API_KEYS_FILE"] == path
    # As a file of a folder: a subPath is not updated when the Secret changes.
    assert "subPath" not in mount


def test_nobody_but_those_named_reaches_the_pods() -> None:
    rendered = render("examples/inference-extension.yaml")
    policy = rendered.of("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": rendered.server["ports"][0]["name"]}]
    names = [
        peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
        for peer in rule["from"]
    ]
    assert names == ["gateways", "monitoring", None, None]
    components = [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in rule["from"][2:]]
    assert components == ["endpoint-picker", "test"]


@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_replicas_follow_queue_and_batch(kind: str) -> None:
    rendered = render(f"examples/autoscaling-{kind}.yaml")
    assert "replicas" not in rendered.of("Deployment")["spec"]
    if kind == "hpa":
        metrics = [
            (m["pods"]["metric"]["name"], m["pods"]["target"]["averageValue"])
            for m in rendered.of("HorizontalPodAutoscaler")["spec"]["metrics"]
        ]
    else:
        triggers = [trigger["metadata"] for trigger in rendered.of("ScaledObject")["spec"]["triggers"]]
        metrics = [(t["query"].removeprefix("sum(").split("{")[0], t["threshold"]) for t in triggers]
        assert all(t["query"].endswith('{namespace="llm", job="headlight"})') for t in triggers)
    assert metrics == [("headlight_num_requests_waiting", "5"), ("headlight_num_requests_running", "48")]


def deployed(replicas: int) -> dict[str, Any]:
    """The Deployment as an installation of before has left it, and whoever has scaled it since."""
    owner = {"meta.helm.sh/release-name": "headlight", "meta.helm.sh/release-namespace": "llm"}
    labels = {"app.kubernetes.io/managed-by": "Helm"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "headlight", "namespace": "llm", "labels": labels, "annotations": owner},
        "spec": {"replicas": replicas},
    }


@pytest.mark.parametrize("replicas", [0, 4])
@pytest.mark.parametrize("kind", ["none", "hpa", "keda"])
def test_autoscaling_keeps_the_replicas_that_there_are(tmp_path: Path, kind: str, replicas: int) -> None:
    with cluster(tmp_path, deployed(replicas)) as config:
        flags = ["--set", f"autoscaling.kind={kind},replicas=3", "--kubeconfig", str(config)]
        done = template(*flags, "--dry-run=server", "--disable-openapi-validation")
    assert done.returncode == 0, done.stderr
    (deployment,) = [d for d in parse(done.stdout) if d["kind"] == "Deployment"]
    assert deployment["spec"]["replicas"] == (3 if kind == "none" else replicas)


def test_pods_do_not_restart_for_a_new_version_of_the_chart(tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "chart")
    (chart / "Chart.yaml").write_text((CHART / "Chart.yaml").read_text().replace("\nversion: ", "\nversion: 9"))
    flags = ["--values", str(CHART / "examples/inference-extension.yaml")]
    before, after = (
        {d["metadata"]["name"]: d for d in parse(template(*flags, chart=path).stdout) if d["kind"] == "Deployment"}
        for path in (CHART, chart)
    )
    assert before.keys() == after.keys() == {"headlight", "headlight-picker"}
    for name, deployment in before.items():
        assert deployment["metadata"]["labels"] != after[name]["metadata"]["labels"]
        assert deployment["spec"]["template"] == after[name]["spec"]["template"]


GPUS = ("nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-1g.10gb")


@pytest.mark.parametrize("count", [2, "2", "1k", "0.5"])
def test_more_gpus_than_the_server_uses_are_refused(count: int | str) -> None:
    done = template(*set_json(resources={field: dict.fromkeys(GPUS, count) for field in ("requests", "limits")}))
    assert done.returncode != 0
    for field in ("requests", "limits"):
        for resource in GPUS:
            assert f"/resources/{field}/{resource.replace('/', '~1')}" in done.stderr


def test_one_gpu_is_taken_of_each_kind() -> None:
    resources = {field: dict.fromkeys(GPUS, 1) for field in ("requests", "limits")}
    rendered = render("values.yaml", *set_json(resources=resources)).server["resources"]
    assert all(rendered[field].items() >= amounts.items() for field, amounts in resources.items())


def test_the_pool_finds_its_picker_and_the_picker_its_pool() -> None:
    rendered = render("examples/inference-extension.yaml", "--set", "inferencePool.istio=true")
    pool = rendered.of("InferencePool")
    service = next(
        d for d in rendered.documents if d["kind"] == "Service" and d["metadata"]["name"].endswith("-picker")
    )
    reference = pool["spec"]["endpointPickerRef"]
    assert reference["name"] == service["metadata"]["name"]
    assert reference["port"]["number"] in [port["port"] for port in service["spec"]["ports"]]
    assert pool["spec"]["targetPorts"] == [{"number": rendered.server["ports"][0]["containerPort"]}]
    (backend,) = rendered.of("HTTPRoute")["spec"]["rules"][0]["backendRefs"]
    assert (backend["group"], backend["kind"], backend["name"]) == (
        "inference.networking.k8s.io",
        "InferencePool",
        "headlight",
    )

    deployment = next(
        d for d in rendered.documents if d["kind"] == "Deployment" and d["metadata"]["name"].endswith("-picker")
    )
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--pool-name=headlight" in arguments
    assert "--pool-namespace=llm" in arguments
    config = next(d for d in rendered.documents if d["kind"] == "ConfigMap")["data"]
    (name,) = config
    assert f"--config-file=/config/{name}" in arguments
    picker = yaml.safe_load(config[name])
    jsonschema.validate(picker, custom_resources.PICKER_CONFIG)
    plugins = {plugin["type"] for plugin in picker["plugins"]}
    assert {plugin["pluginRef"] for profile in picker["schedulingProfiles"] for plugin in profile["plugins"]} <= plugins


def test_dashboard_and_alerts_are_those_of_the_repository() -> None:
    rendered = render("examples/production.yaml")
    assert (
        rendered.of("ConfigMap")["data"]["headlight.json"].strip()
        == (DEPLOY / "dashboards/headlight.json").read_text().strip()
    )
    rules = rendered.of("PrometheusRule")["spec"]["groups"][0]["rules"]
    ours = yaml.safe_load((DEPLOY / "alerts/headlight.rules.yaml").read_text())["groups"][0]["rules"]
    assert [{**rule, "expr": None} for rule in rules] == [{**rule, "expr": None} for rule in ours]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["replica=3"], "replica"),
        (["replicas=-1"], "/replicas"),
        (["port=80000"], "/port"),
        (["settings.max_contxt=4096"], "max_contxt"),
        (["settings.max_context=many"], "/settings/max_context"),
        (["settings.drain_seconds=5"], "drain_seconds"),
        (["settings.memory_share=1.5"], "/settings/memory_share"),
        (["env[0].name=HEADLIGHT_MODEL"], "/env/0/name"),
        (["model.source=s3"], "/model/source"),
        (["model.source=pvc"], "/model/pvc/claim"),
        (["model.source=pvc,model.pvc.claim=c,model.name=/absolute"], "/model/name"),
        (["model.source=oci"], "/model/oci/reference"),
        (["apiKeys.create={a key}"], "/apiKeys/create/0"),
        (["apiKeys.secret=s,apiKeys.create={k}"], "give the keys in one way"),
        (["autoscaling.kind=vpa"], "/autoscaling/kind"),
        (["autoscaling.kind=hpa,autoscaling.minReplicas=9"], "minReplicas (9) is more than maxReplicas (4)"),
        (["route.enabled=true"], "/route/gateway/name"),
        (["shutdown.teardownSeconds=0"], "/shutdown/teardownSeconds"),
        (["networkPolicy.clients=null"], "missing property 'clients'"),
        (["inferencePool.failureMode=Maybe"], "/inferencePool/failureMode"),
    ],
)
def test_wrong_values_are_refused_by_name(flags: list[str], said: str) -> None:
    done = template(*(part for flag in flags for part in ("--set", flag)))
    assert done.returncode != 0
    assert said in done.stderr


def test_image_volumes_need_a_cluster_that_has_them() -> None:
    done = template("--values", str(CHART / "examples/model-oci.yaml"), "--kube-version", "1.32")
    assert done.returncode != 0
    assert "needs Kubernetes 1.33 or newer" in done.stderr


def test_the_notes_say_how_to_reach_it_and_what_to_worry_about() -> None:
    command = [helm(), "install", "headlight", str(CHART), "--dry-run=client", "--namespace", "llm"]
    open_to_all = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    notes = open_to_all.split("NOTES:")[1]
    assert "kubectl --namespace llm port-forward service/headlight 8000:80" in notes
    assert "WARNING: there are no API keys" in notes
    with_keys = subprocess.run(
        [*command, "--set", "apiKeys.secret=k"], capture_output=True, text=True, check=True
    ).stdout
    notes = with_keys.split("NOTES:")[1]
    assert '-H "Authorization: Bearer $KEY"' in notes
    assert "WARNING" not in notes


def test_ports_of_events_are_the_containers_and_open_to_clients() -> None:
    settings = {
        "kv_events_endpoint": "tcp://*:5557",
        "kv_events_replay_endpoint": "tcp://[::]:5558",
        "kv_events_topic": "kv@$(POD_IP):8000@model",
    }
    rendered = render("values.yaml", *set_json(settings=settings))
    ports = {port["name"]: port["containerPort"] for port in rendered.server["ports"]}
    assert ports == {"http": 8000, "kv-events": 5557, "kv-replay": 5558}
    (rule,) = rendered.of("NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == ["http", "kv-events", "kv-replay"]
    # Kubernetes resolves a variable in those that come after it.
    names = [variable["name"] for variable in rendered.server["env"]]
    assert names.index("POD_IP") < names.index("HEADLIGHT_KV_EVENTS_TOPIC")


@pytest.mark.parametrize("endpoint", [None, "tcp://router:5557"])
def test_without_an_endpoint_of_its_own_a_pod_opens_no_port_for_events(endpoint: str | None) -> None:
    settings = {} if endpoint is None else {"kv_events_endpoint": endpoint}
    rendered = render("values.yaml", *set_json(settings=settings))
    assert [port["name"] for port in rendered.server["ports"]] == ["http"]
    assert ("POD_IP" in [variable["name"] for variable in rendered.server["env"]]) == bool(endpoint)
