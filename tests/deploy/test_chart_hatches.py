"""What a platform team adds to the chart: each value is where it must be, and nowhere while it is unset or empty."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import custom_resources
from tests.deploy.chart import KUBERNETES, Document, Rendered, parse, render, set_json, template
from tests.deploy.tools import CHART

VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
DIGEST = "sha256:" + "0123456789abcdef" * 4


def mark(name: str) -> dict[str, str]:
    """A label or an annotation."""
    return {"team.example.com/name": name}


MARK = mark("search")
VARIABLE = [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]
OTHER_VARIABLE = [{"name": "NO_PROXY", "value": "llm"}]
FROM = [{"secretRef": {"name": "proxy"}}]
VOLUME = [{"name": "certificates", "configMap": {"name": "ca"}}]
MOUNT = [{"name": "certificates", "mountPath": "/etc/ca"}]
SIDECAR = [{"name": "sidecar", "image": "example.com/sidecar:1"}]
FIRST = [{"name": "first", "image": "example.com/first:1"}]
CLAIMS = [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]
TLS = [{"hosts": ["llm.example.com"], "secretName": "tls"}]
HEADERS = [{"name": "x-team", "value": "search"}]
FILTERS = [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["x-internal"]}}]
PATHS = [{"type": "PathPrefix", "value": "/v1"}, {"type": "Exact", "value": "/health"}]
HOSTNAMES = ["llm.example.com", "llm.example.org"]
LIMITS = {"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"cpu": "50m", "memory": "64Mi"}}
CACHE = (("claims.cache.size", "5Gi"),)
KEDA = (("autoscaling.kind", "keda"),)
METRICS = [
    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}
]
FALLBACK = {"failureThreshold": 3, "replicas": 4}
HOURS = {"timezone": "UTC", "start": "0 8 * * *", "end": "0 18 * * *", "desiredReplicas": "1"}
CRON = [{"type": "cron", "metadata": HOURS}]
GATEWAY = {"enabled": True, "gateway": {"name": "public"}}


@dataclass(frozen=True)
class Hatch:
    """A value of the chart, and the places of the documents that must have it as it is."""

    path: str
    """Of the value, with dots."""
    value: Any
    places: Callable[[Rendered], list[Any]]
    given: tuple[tuple[str, Any], ...] = ()
    """What makes the places be there."""
    empty: Any = None
    """The value that is as good as none."""
    name: str = ""

    def fits(self, other: "Hatch") -> bool:
        """Whether both can be rendered at once."""
        ours, theirs = ({**dict(one.given), one.path: one.value} for one in (self, other))
        return all(theirs[path] == value for path, value in ours.items() if path in theirs)

    def __str__(self) -> str:
        return self.name or self.path


def both(field: str) -> Callable[[Rendered], list[Any]]:
    """A field of the container that fetches the model and of the server."""
    return lambda rendered: [container.get(field, []) for container in fetch_and_server(rendered)]


def fetch_and_server(rendered: Rendered) -> list[Document]:
    return [next(c for c in rendered.containers() if c["name"] == name) for name in ("fetch-model", "server")]


def spec(kind: str, field: str) -> Callable[[Rendered], list[Any]]:
    return lambda rendered: [rendered.of(kind)["spec"].get(field)]


def pod(field: str) -> Callable[[Rendered], list[Any]]:
    return lambda rendered: [rendered.pod.get(field)]


def matches(field: str) -> Callable[[Rendered], list[Any]]:
    return lambda rendered: [m.get(field) for m in rendered.of("HTTPRoute")["spec"]["rules"][0]["matches"]]


HATCHES = [
    Hatch("extraEnv", VARIABLE, both("env"), empty=[]),
    Hatch("envFrom", FROM, both("envFrom"), empty=[]),
    Hatch("env", OTHER_VARIABLE, lambda r: [r.server["env"]], empty=[]),
    Hatch("extraVolumes", VOLUME, pod("volumes"), empty=[]),
    Hatch("extraVolumeMounts", MOUNT, both("volumeMounts"), empty=[]),
    Hatch("extraContainers", SIDECAR, pod("containers"), empty=[]),
    Hatch("extraInitContainers", FIRST, pod("initContainers"), empty=[]),
    Hatch(
        "extraInitContainers",
        SIDECAR,
        pod("initContainers"),
        given=(("model.source", "image"),),
        name="extraInitContainers-without-a-download",
    ),
    Hatch("resourceClaims", CLAIMS, pod("resourceClaims"), empty=[]),
    Hatch("schedulerName", "volcano", pod("schedulerName"), empty=""),
    Hatch("runtimeClassName", "nvidia", pod("runtimeClassName"), empty=""),
    Hatch("priorityClassName", "high", pod("priorityClassName"), empty=""),
    Hatch("nodeSelector", mark("nodeSelector"), pod("nodeSelector"), empty={}),
    Hatch("tolerations", [{"operator": "Exists"}], pod("tolerations"), empty=[]),
    Hatch("affinity", {"nodeAffinity": {}}, pod("affinity"), empty={}),
    Hatch("imagePullSecrets", [{"name": "registry"}], pod("imagePullSecrets"), empty=[]),
    Hatch("global.imagePullSecrets", [{"name": "mirror"}], pod("imagePullSecrets"), empty=[]),
    Hatch("serviceAccount.name", "models", pod("serviceAccountName"), empty=""),
    Hatch("serviceAccount.automountToken", True, pod("automountServiceAccountToken"), empty=False),
    Hatch(
        "service.loadBalancerClass", "c", spec("Service", "loadBalancerClass"), (("service.type", "LoadBalancer"),), ""
    ),
    Hatch(
        "service.nodePort",
        30080,
        lambda r: [r.of("Service")["spec"]["ports"][0].get("nodePort")],
        (("service.type", "NodePort"),),
        0,
    ),
    Hatch(
        "model.download.resources",
        {
            "requests": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"},
            "limits": {"cpu": "1", "memory": "1Gi"},
        },
        lambda r: [fetch_and_server(r)[0]["resources"]],
    ),
    Hatch("route.paths", PATHS, lambda r: [matches("path")(r)], (("route", GATEWAY),)),
    Hatch("route.hostnames", HOSTNAMES, spec("HTTPRoute", "hostnames"), (("route", GATEWAY),), []),
    Hatch("route.headers", HEADERS, matches("headers"), (("route", {**GATEWAY, "paths": PATHS}),), []),
    Hatch(
        "route.filters",
        FILTERS,
        lambda r: [r.of("HTTPRoute")["spec"]["rules"][0].get("filters")],
        (("route", GATEWAY),),
        [],
    ),
    Hatch(
        "autoscaling.hpa.metrics",
        METRICS,
        spec("HorizontalPodAutoscaler", "metrics"),
        (("autoscaling.kind", "hpa"),),
        [],
    ),
    Hatch("autoscaling.keda.pollingSeconds", 60, spec("ScaledObject", "pollingInterval"), KEDA),
    Hatch("autoscaling.keda.cooldownSeconds", 60, spec("ScaledObject", "cooldownPeriod"), KEDA),
    Hatch("autoscaling.keda.fallback", FALLBACK, spec("ScaledObject", "fallback"), KEDA, {}),
    Hatch("autoscaling.keda.triggers", CRON, spec("ScaledObject", "triggers"), KEDA, []),
    Hatch("test.resources", LIMITS, lambda r: [r.of("Pod")["spec"]["containers"][0]["resources"]]),
    Hatch(
        "tolerations",
        [{"operator": "Exists"}],
        lambda r: [r.of("Pod")["spec"].get("tolerations")],
        empty=[],
        name="tolerations-of-the-test",
    ),
    Hatch("claims.cache.storageClassName", "fast", spec("PersistentVolumeClaim", "storageClassName"), CACHE, ""),
    Hatch("claims.cache.accessModes", ["ReadWriteMany"], spec("PersistentVolumeClaim", "accessModes"), CACHE),
    Hatch("ingress.className", "nginx", spec("Ingress", "ingressClassName"), (("ingress.enabled", True),), ""),
    Hatch("ingress.tls", TLS, spec("Ingress", "tls"), (("ingress.enabled", True),), []),
]
OWNERS = {
    "claims.cache": ("PersistentVolumeClaim", CACHE),
    "deployment": ("Deployment", ()),
    "service": ("Service", ()),
    "serviceAccount": ("ServiceAccount", (("serviceAccount.create", True),)),
    "disruptionBudget": ("PodDisruptionBudget", ()),
    "networkPolicy": ("NetworkPolicy", ()),
    "serviceMonitor": ("ServiceMonitor", (("serviceMonitor.enabled", True),)),
    "alerts": ("PrometheusRule", (("alerts.enabled", True),)),
    "dashboard": ("ConfigMap", (("dashboard.enabled", True),)),
    "route": ("HTTPRoute", (("route", GATEWAY),)),
    "ingress": ("Ingress", (("ingress.enabled", True),)),
    "inferencePool": ("InferencePool", (("inferencePool.enabled", True),)),
    "autoscaling": ("HorizontalPodAutoscaler", (("autoscaling.kind", "hpa"),)),
}
"""The values that have labels and annotations, the kind of their object, and what makes it be there."""

HATCHES += [
    Hatch(
        f"{owner}.{field}",
        mark(f"{owner}.{field}"),
        lambda r, kind=kind, field=field: [r.of(kind)["metadata"].get(field)],
        given,
        {},
    )
    for owner, (kind, given) in OWNERS.items()
    for field in ("labels", "annotations")
]
HATCHES += [
    Hatch(
        "podLabels",
        mark("podLabels"),
        lambda r: [r.of("Deployment")["spec"]["template"]["metadata"]["labels"]],
        empty={},
    ),
    Hatch(
        "podAnnotations",
        mark("podAnnotations"),
        lambda r: [r.of("Deployment")["spec"]["template"]["metadata"].get("annotations")],
        empty={},
    ),
]


def has(place: Any, value: Any) -> bool:
    """Whether a place is the value, or a list or a map that has all of it."""
    if place == value:
        return True
    if isinstance(place, list) and isinstance(value, list):
        return all(entry in place for entry in value)
    return isinstance(place, dict) and isinstance(value, dict) and value.items() <= place.items()


def groups(count: int) -> list[list[Hatch]]:
    """The hatches in groups that are rendered at once. Neighbours, which have to do with each other, are apart."""
    found: list[list[Hatch]] = [[] for _ in range(count)]
    for index, hatch in enumerate(HATCHES):
        turn = [*found[index % count :], *found[: index % count]]
        next(group for group in turn if all(hatch.fits(other) for other in group)).append(hatch)
    return found


GROUPS = groups(8)


def rendered_with(group: list[Hatch], **values: Any) -> Rendered:
    """The chart with these values, and with what the group's hatches need."""
    return render("values.yaml", *set_json(**dict(pair for hatch in group for pair in hatch.given), **values))


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group[0].path)
def test_values_are_where_they_must_be(group: list[Hatch]) -> None:
    rendered = rendered_with(group, **{hatch.path: hatch.value for hatch in group})
    for document in rendered.documents:
        custom_resources.validate_any(document, KUBERNETES)
    unset = rendered_with(group)
    for hatch in group:
        places = hatch.places(rendered)
        assert places, hatch
        assert all(has(place, hatch.value) for place in places), hatch
        assert not any(has(place, hatch.value) for place in hatch.places(unset)), hatch


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group[0].path)
@pytest.mark.parametrize("value", ["empty", "null"])
def test_empty_values_change_nothing(group: list[Hatch], value: str) -> None:
    empty = {hatch.path: hatch.empty if value == "empty" else None for hatch in group if hatch.empty is not None}
    if value == "null":
        empty.pop("dashboard.labels", None)  # They have a default, which null takes away.
    assert rendered_with(group, **empty).documents == rendered_with(group).documents


def test_every_object_and_pod_has_the_common_labels_and_annotations() -> None:
    everything = {**dict(pair for _, given in OWNERS.values() for pair in given), "apiKeys.create": ["key"]}
    everything["inferencePool.istio"] = True
    rendered = render("values.yaml", *set_json(**everything, commonLabels=MARK, commonAnnotations=MARK))
    bodies = [d["spec"]["template"] for d in rendered.documents if d["kind"] == "Deployment"]
    assert len(bodies) == 2
    for body in [*rendered.documents, *bodies]:
        assert body["metadata"]["labels"].items() >= MARK.items(), body
        assert body["metadata"]["annotations"].items() >= MARK.items(), body
    for selector in [d["spec"]["selector"] for d in rendered.documents if "selector" in d.get("spec", {})]:
        assert MARK.keys().isdisjoint(selector.get("matchLabels", selector))


def test_an_objects_own_labels_go_before_the_common_ones() -> None:
    other = {"team.example.com/name": "platform", "tier": "1"}
    rendered = render("values.yaml", *set_json(commonLabels=other, podLabels=MARK, **{"service.labels": MARK}))
    pod = rendered.of("Deployment")["spec"]["template"]["metadata"]["labels"]
    for labels in (pod, rendered.of("Service")["metadata"]["labels"]):
        assert labels["team.example.com/name"] == "search"
        assert labels["tier"] == "1"


@pytest.mark.parametrize("value", ["nameOverride", "fullnameOverride"])
@pytest.mark.parametrize("name", ["llama", "on", "null"])
def test_everything_has_the_name_that_it_is_given(value: str, name: str) -> None:
    rendered = render("examples/inference-extension.yaml", *set_json(**{value: name, "serviceAccount.create": True}))
    names = {document["metadata"]["name"] for document in rendered.documents}
    assert names == {name, f"{name}-picker", f"{name}-test"}
    assert rendered.of("Deployment")["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"] == name
    assert rendered.pod["serviceAccountName"] == name
    assert rendered.of("HTTPRoute")["spec"]["rules"][0]["backendRefs"][0]["name"] == name


def test_an_account_is_made_only_where_it_is_asked_for() -> None:
    default = render("values.yaml")
    assert not [d for d in default.documents if d["kind"] == "ServiceAccount"]
    assert "serviceAccountName" not in default.pod
    named = render("values.yaml", "--set", "serviceAccount.create=true,serviceAccount.name=models")
    assert named.of("ServiceAccount")["metadata"]["name"] == named.pod["serviceAccountName"] == "models"


def test_an_ingress_leads_to_the_service() -> None:
    rendered = render("examples/ingress.yaml", *set_json(**{"ingress.hostnames": HOSTNAMES}))
    rules = rendered.of("Ingress")["spec"]["rules"]
    assert [rule["host"] for rule in rules] == HOSTNAMES
    service = rendered.of("Service")
    for rule in rules:
        assert [path["path"] for path in rule["http"]["paths"]] == ["/v1", "/health"]
        for path in rule["http"]["paths"]:
            backend = path["backend"]["service"]
            assert backend["name"] == service["metadata"]["name"]
            assert backend["port"]["name"] in [port["name"] for port in service["spec"]["ports"]]
    (anywhere,) = render("values.yaml", "--set", "ingress.enabled=true").of("Ingress")["spec"]["rules"]
    assert "host" not in anywhere


def test_a_quota_can_count_all_that_a_pod_may_use() -> None:
    rendered = render("examples/quota.yaml", "--set", "inferencePool.enabled=true")
    assert len(rendered.pods()) == 3
    for pod_spec in rendered.pods():
        for container in [*pod_spec.get("initContainers", []), *pod_spec["containers"]]:
            for amounts in (container["resources"]["requests"], container["resources"]["limits"]):
                assert {"cpu", "memory", "ephemeral-storage"} <= amounts.keys()
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod_spec.get("volumes", []) if "emptyDir" in volume)


def test_by_default_every_container_has_the_limits_that_a_quota_asks_for() -> None:
    for container in render("values.yaml").containers():
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({}, f"headlight:{VERSION}-cpu"),
        ({"variant": "cuda"}, f"headlight:{VERSION}-cuda"),
        ({"tag": "mine"}, "headlight:mine"),
        ({"digest": DIGEST, "repository": "example.com/headlight"}, f"example.com/headlight@{DIGEST}"),
    ],
    ids=str,
)
def test_the_image_follows_the_chart_or_what_is_said(image: dict[str, str], reference: str) -> None:
    rendered = render("values.yaml", *set_json(**{f"image.{name}": value for name, value in image.items()}))
    ours = [*rendered.containers(), *rendered.of("Pod")["spec"]["containers"]]
    assert {container["image"] for container in ours} == {reference}


@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_a_part_of_an_umbrella_chart(tmp_path: Path, enabled: bool) -> None:
    dependency = {"name": "headlight", "version": ">0.0.0", "condition": "headlight.enabled"}
    chart = {"apiVersion": "v2", "name": "umbrella", "version": "1.0.0", "dependencies": [dependency]}
    values = {
        "global": {"imageRegistry": "mirror.example.com", "imagePullSecrets": ["registry"], "team": "search"},
        "headlight": {"enabled": enabled, "replicas": 2},
    }
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "headlight").symlink_to(CHART)
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart))
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    done = template(chart=tmp_path)
    assert done.returncode == 0, done.stderr
    documents = parse(done.stdout)
    if not enabled:
        assert documents == []
        return
    rendered = Rendered(documents, values)
    assert rendered.of("Deployment")["spec"]["replicas"] == 2
    assert rendered.pod["imagePullSecrets"] == [{"name": "registry"}]
    for container in rendered.containers():
        assert container["image"].startswith("mirror.example.com/headlight:")


@pytest.mark.parametrize(
    ("repository", "mirrored"),
    [
        ("headlight", "mirror.example.com/headlight"),
        ("team/headlight", "mirror.example.com/team/headlight"),
        ("ghcr.io/team/headlight", "mirror.example.com/team/headlight"),
        ("localhost/headlight", "mirror.example.com/headlight"),
        ("registry:5000/team/headlight", "mirror.example.com/team/headlight"),
    ],
)
def test_images_come_from_the_umbrellas_registry(repository: str, mirrored: str) -> None:
    image = {"repository": repository, "digest": DIGEST}
    picker = {"inferencePool.picker.image": f"{repository}:v1"}
    flags = set_json(**{"global.imageRegistry": "mirror.example.com", "image": image, **picker})
    pods = render("examples/inference-extension.yaml", *flags).pods()
    images = {c["image"] for pod in pods for c in [*pod.get("initContainers", []), *pod["containers"]]}
    assert images == {f"{mirrored}@{DIGEST}", f"{mirrored}:v1"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"extraEnv": [{"name": "HEADLIGHT_MODEL"}]}, "/extraEnv/0/name"),
        ({"extraEnv": [{"name": "HF_HOME", "value": "/x"}]}, "/extraEnv/0/name"),
        ({"extraEnv": VARIABLE, "env": VARIABLE}, "HTTPS_PROXY is given more than once"),
        (
            {"extraEnv": [{"name": "HF_TOKEN", "value": "t"}], "model.download.tokenSecret.name": "hub"},
            "HF_TOKEN is given more than once",
        ),
        ({"envFrom": [{"secret": "proxy"}]}, "/envFrom/0"),
        ({"extraVolumes": [{"name": "cache"}]}, "/extraVolumes/0/name"),
        ({"extraVolumeMounts": [{"name": "certificates"}]}, "mountPath"),
        ({"extraContainers": [{"name": "server", "image": "i"}]}, "/extraContainers/0/name"),
        ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "'app.kubernetes.io/name'"),
        ({"podLabels": {"team": "not a label"}}, "/podLabels/team"),
        ({"commonAnnotations": {"count": 1}}, "/commonAnnotations/count"),
        ({"cache": {"emptyDir": {}, "hostPath": {"path": "/x"}}}, "/cache"),
        ({"service.nodePort": 30080}, "/service/nodePort"),
        ({"service.loadBalancerClass": "c"}, "/service/loadBalancerClass"),
        ({"image.tag": "a", "image.digest": DIGEST}, "give the image in one way"),
        ({"image.digest": "sha256:1"}, "/image/digest"),
        ({"image.variant": "rocm"}, "/image/variant"),
        ({"nameOverride": "a", "fullnameOverride": "b"}, "give the name in one way"),
        ({"route": {**GATEWAY, "paths": []}}, "/route/paths"),
        ({"route": {**GATEWAY, "filters": [{"type": "Rewrite"}]}}, "/route/filters/0/type"),
        ({"ingress.paths": [{"path": "v1", "pathType": "Prefix"}]}, "/ingress/paths/0/path"),
        ({"enabled": False}, "condition: headlight.enabled"),
    ],
    ids=str,
)
def test_what_would_not_fit_is_refused_by_name(values: dict[str, Any], said: str) -> None:
    done = template(*set_json(**values))
    assert done.returncode != 0
    assert said in done.stderr
