"""Renders the chart with Helm, as an installation would see it."""

import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tools import CHART, helm

CASES = [
    "values.yaml",
    "values-gpu.yaml",
    *sorted(f"examples/{path.name}" for path in (CHART / "examples").glob("*.yaml")),
]
KUBERNETES = "1.35"

Document = dict[str, Any]
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""PyYAML's loader in C, ten times as fast, where it has one."""


@dataclass(frozen=True)
class Rendered:
    """The chart's documents, and the values that they were made with."""

    documents: list[Document]
    values: Document

    def of(self, kind: str) -> Document:
        """The only document of a kind that belongs to the server."""
        found = [d for d in self.documents if d["kind"] == kind and not d["metadata"]["name"].endswith("-picker")]
        assert len(found) == 1, kind
        return found[0]

    def pods(self) -> list[Document]:
        """What runs: the server, the picker and the test."""
        deployments = [d["spec"]["template"]["spec"] for d in self.documents if d["kind"] == "Deployment"]
        return [*deployments, *(d["spec"] for d in self.documents if d["kind"] == "Pod")]

    @property
    def pod(self) -> Document:
        return self.of("Deployment")["spec"]["template"]["spec"]

    @property
    def server(self) -> Document:
        return next(container for container in self.pod["containers"] if container["name"] == "server")

    def containers(self) -> list[Document]:
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]

    def environment(self) -> dict[str, str]:
        return {variable["name"]: variable["value"] for variable in self.server["env"] if "value" in variable}


def set_json(**values: Document) -> list[str]:
    """Flags that set values with their types; `--set` takes every fraction for text."""
    return [flag for name, value in values.items() for flag in ("--set-json", f"{name}={json.dumps(value)}")]


def template(*flags: str, chart: Path = CHART) -> subprocess.CompletedProcess[str]:
    """`helm template` of a release called headlight in the namespace llm."""
    command = [helm(), "template", "headlight", str(chart), "--namespace", "llm", "--kube-version", KUBERNETES, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def parse(text: str) -> list[Document]:
    documents: list[Document] = [*yaml.load_all(text, _Loader)]
    return [document for document in documents if document]


@functools.cache
def render(case: str, *flags: str) -> Rendered:
    """The documents for one of `CASES` and further flags; an error of Helm's fails the test."""
    done = template("--values", str(CHART / case), *flags)
    assert done.returncode == 0, done.stderr
    return Rendered(parse(done.stdout), _merge(_values("values.yaml"), _values(case)))


@functools.cache
def _values(case: str) -> Document:
    values: Document = parse((CHART / case).read_text())[0]
    return values


def _merge(under: Document, over: Document) -> Document:
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(under.get(name), dict)
        merged[name] = _merge(under[name], value) if both else value
    return merged
