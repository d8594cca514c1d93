"""A stand-in for a cluster's API server, which has Deployments and takes nothing: what Helm's `lookup` asks of it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

Answers = dict[str, dict[str, Any]]

KINDS = {
    "v1": {"Pod": "pods", "Service": "services"},
    "apps/v1": {"Deployment": "deployments"},
    "autoscaling/v2": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
    "keda.sh/v1alpha1": {"ScaledObject": "scaledobjects"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
}
"""What may be made there: the plurals of kinds by their API's group and version."""


@contextmanager
def cluster(folder: Path, *deployments: dict[str, Any]) -> Iterator[Path]:
    """The kubeconfig, in `folder`, of a cluster in which these Deployments are."""
    answers = _discovery() | {_path(deployment): deployment for deployment in deployments}
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(answers)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield _kubeconfig(folder / "kubeconfig", f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


def _path(deployment: dict[str, Any]) -> str:
    metadata = deployment["metadata"]
    return f"/apis/apps/v1/namespaces/{metadata['namespace']}/deployments/{metadata['name']}"


def _discovery() -> Answers:
    groups = [api.split("/") for api in KINDS if "/" in api]
    versions = [{"name": name, "versions": [{"groupVersion": f"{name}/{v}", "version": v}]} for name, v in groups]
    answers: Answers = {
        "/version": {"major": "1", "minor": "35", "gitVersion": "v1.35.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "groups": versions},
    }
    for api, kinds in KINDS.items():
        resources = [{"name": name, "kind": kind, "namespaced": True, "verbs": ["get"]} for kind, name in kinds.items()]
        path = f"/apis/{api}" if "/" in api else f"/api/{api}"
        answers[path] = {"kind": "APIResourceList", "groupVersion": api, "resources": resources}
    return answers


def _kubeconfig(path: Path, url: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    path.write_text(yaml.safe_dump(config))
    return path


def _handler(answers: Answers) -> type[BaseHTTPRequestHandler]:
    missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.split("?")[0])
            body = json.dumps(found or missing).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
