"""The chart as Helm renders it: every example is valid for Kubernetes, and wrong values are refused by name."""

import subprocess
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy import custom_resources
from tests.deploy.chart import CASES, KUBERNETES, Rendered, render, set_json, template
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
        if (document["apiVersion"], document["kind"]) in custom_resources.SPECS:
            custom_resources.validate(document)
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_every_document_is_in_the_namespace_and_says_whose_it_is(rendered: Rendered) -> None:
    for document in rendered.documents:
        assert document["metadata"]["namespace"] == "llm"
        if document["kind"] != "DestinationRule":
            assert document["metadata"]["labels"]["app.kubernetes.io/instance"] == "headlight"


def test_whatever_selects_pods_selects_the_servers_alone(rendered: Rendered) -> None:
    pods = {
        d["metadata"]["name"]: d["spec"]["template"]["metadata"]["labels"]
        for d in rendered.documents
        if d["kind"] == "Deployment"
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
    for deployment in (d for d in rendered.documents if d["kind"] == "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
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
    assert names == ["gateways", "monitoring", None]
    assert rule["from"][2]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "endpoint-picker"


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
    assert rendered.of("PrometheusRule")["spec"] == yaml.safe_load((DEPLOY / "alerts/headlight.rules.yaml").read_text())


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
